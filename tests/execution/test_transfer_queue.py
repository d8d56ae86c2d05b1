"""The threads behind the real links: who begins when, who is told, and what a failure leaves behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

torch_transfer = pytest.importorskip("kvarena.framework.execution.torch_transfer")

from kvarena.framework.execution import transfer_queue  # noqa: E402
from kvarena.framework.execution.clocks import SkipIdleClock  # noqa: E402
from kvarena.framework.execution.transfer_queue import TransferQueue  # noqa: E402
from kvarena.framework.execution.transfers import Transfer  # noqa: E402
from kvarena.framework.memory.moves import Move  # noqa: E402
from kvarena.framework.policy import Tier  # noqa: E402

PATIENCE_S = 10.0
NOTHING = np.empty(0, np.int64)


def make_move(name: str = "", pages: int = 1, **options: Any) -> Move:
    slots, keys = np.zeros(pages, np.int32), np.zeros(pages, np.int64)
    return Move(Tier.HOST, Tier.DEVICE, slots, slots, keys, keys, name, **options)


def blocked(wait: Callable[[], Any], transfer: Any, then: Callable[[], Any]) -> Any:
    """What ``wait`` returns in a thread that was blocked by ``transfer`` until ``then`` was called."""
    result: list[Any] = []
    transfer.urgent = False  # a thread that begins to wait sets it
    thread = threading.Thread(target=lambda: result.append(wait()))
    thread.start()
    deadline_s = time.monotonic() + PATIENCE_S
    while not transfer.urgent:
        assert time.monotonic() < deadline_s, "nobody waits"
        time.sleep(0.001)
    assert not result
    then()
    thread.join(PATIENCE_S)
    return result[0]


class Bench:
    """Two opposite lanes whose transfers run until they are let go; ``begun`` names them in order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.errors: dict[str, Exception] = {}
        self._gates: dict[str, threading.Event] = {}
        self._started = threading.Condition()
        self.clock = SkipIdleClock()
        self.queue = TransferQueue({"up": self._carry, "down": self._carry}, [("up", "down")], self.clock)

    def _carry(self, transfer: Any) -> np.ndarray:
        name = transfer.move.reason
        with self._started:
            self.begun.append(name)
            self._started.notify_all()
        assert self._gate(name).wait(PATIENCE_S)
        if name in self.errors:
            raise self.errors[name]
        return NOTHING

    def _gate(self, name: str) -> threading.Event:
        return self._gates.setdefault(name, threading.Event())  # atomic

    def submit(self, name: str, lane: str = "up", after: list[Any] | None = None, **options: Any) -> Any:
        return self.queue.submit(lane, make_move(name, **options), 1, 1, self.clock.now(), after or [])

    def let_go(self, *names: str) -> None:
        for name in names:
            self._gate(name).set()

    def expect(self, *names: str) -> None:
        """These have begun, in this order, and nothing else does."""
        with self._started:
            assert self._started.wait_for(lambda: len(self.begun) >= len(names), PATIENCE_S), self.begun
        time.sleep(0.02)
        assert self.begun == list(names)

    def until_closing(self) -> None:
        while not self.queue._closing:
            time.sleep(0.001)

    def drain(self, count: int) -> list[str]:
        ended: list[Transfer] = []
        while len(ended) < count:
            self.queue.wait()
            ended += self.queue.poll()
        return [transfer.move.reason for transfer in ended]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for name in "abcdefgh":
        bench.let_go(name)
    assert bench.queue.close(lambda move: False)


def test_urgent_first_then_in_order(bench: Bench) -> None:
    for name, urgent in (("a", False), ("b", False), ("c", True), ("d", False), ("e", True)):
        bench.submit(name, urgent=urgent)
        if name == "a":
            bench.expect("a")
    bench.let_go(*"abcde")
    assert bench.drain(5) == list("acebd")


def test_lanes_run_side_by_side(bench: Bench) -> None:
    bench.submit("a", "up")
    bench.submit("b", "down")
    with bench._started:
        assert bench._started.wait_for(lambda: sorted(bench.begun) == ["a", "b"], PATIENCE_S)


def test_after_is_respected_across_lanes(bench: Bench) -> None:
    a = bench.submit("a", "down")
    b = bench.submit("b", "up", after=[a])
    bench.submit("c", "down", after=[a, b])
    bench.submit("d", "down")
    bench.expect("a")
    bench.let_go("d", "a")
    with bench._started:
        assert bench._started.wait_for(lambda: {"a", "b", "d"} <= set(bench.begun), PATIENCE_S)
    assert "c" not in bench.begun
    bench.let_go("b", "c")
    assert bench.drain(4)[-1] == "c"


def test_what_has_ended_holds_nobody(bench: Bench) -> None:
    a = bench.submit("a")
    bench.let_go("a")
    bench.drain(1)
    bench.submit("b", after=[a])
    bench.expect("a", "b")


def test_what_an_urgent_one_waits_for_is_urgent(bench: Bench) -> None:
    bench.submit("a", "down")
    bench.expect("a")
    bench.submit("b", "down")
    c = bench.submit("c", "down")
    d = bench.submit("d", "down", after=[c])
    bench.submit("e", "up", after=[d], urgent=True)
    bench.let_go(*"abcde")
    bench.drain(5)
    assert bench.begun[:3] == list("acd")


def test_waiting_for_a_transfer_makes_it_urgent(bench: Bench) -> None:
    bench.submit("a")
    bench.expect("a")
    bench.submit("b")
    c = bench.submit("c")
    assert blocked(c.wait, c, lambda: bench.let_go(*"abc")) > 0.0
    assert bench.drain(3) == list("acb")


class TestYielding:
    def test_waits_while_the_opposite_lane_runs_or_is_ready(self, bench: Bench) -> None:
        bench.submit("a", "up")
        bench.expect("a")
        bench.submit("b", "up")
        bench.submit("c", "down", yields=True)
        bench.submit("d", "down")
        bench.expect("a", "d")
        bench.let_go("a", "d")
        bench.expect("a", "d", "b")
        bench.let_go("b")
        bench.expect("a", "d", "b", "c")

    def test_does_not_wait_for_what_is_held_up_itself(self, bench: Bench) -> None:
        a = bench.submit("a", "down")
        bench.expect("a")
        bench.submit("b", "up", after=[a])
        bench.submit("c", "down", yields=True)
        bench.submit("d", "down", yields=True, after=[a])
        bench.let_go("a")
        bench.expect("a", "b")
        bench.let_go("b", "c", "d")
        assert sorted(bench.drain(4)) == list("abcd")

    def test_two_that_yield_to_each_other_both_end(self, bench: Bench) -> None:
        bench.submit("a", "up")
        bench.submit("b", "down")
        bench.submit("c", "up", yields=True)
        bench.submit("d", "down", yields=True)
        bench.let_go(*"abcd")
        assert sorted(bench.drain(4)) == list("abcd")


class TestCancelling:
    def test_only_what_has_not_begun(self, bench: Bench) -> None:
        a = bench.submit("a")
        b = bench.submit("b")
        bench.expect("a")
        assert not bench.queue.cancel(a)
        assert bench.queue.cancel(b) and b.cancelled and b.done and b.start_s is None
        assert not bench.queue.cancel(b)
        assert bench.queue.poll() == [b]
        bench.let_go("a")
        assert bench.drain(1) == ["a"] and not a.cancelled and not bench.queue.cancel(a)
        assert not bench.queue.cancel(Transfer(make_move(), 1, 1, 0.0))

    def test_what_comes_after_it_comes_after_what_it_waited_for(self, bench: Bench) -> None:
        a = bench.submit("a", "down")
        b = bench.submit("b", "up", after=[a])
        bench.submit("c", "up", after=[b])
        assert bench.queue.cancel(b) and b.cancelled and not b.done and not bench.queue.cancel(b)
        bench.submit("d", "up", after=[b])
        bench.expect("a")
        bench.let_go(*"abcd")
        assert bench.drain(4) == list("abcd") and bench.begun == list("acd") and b.start_s is None

    def test_a_long_chain(self, bench: Bench) -> None:
        chain = [bench.submit("a")]
        bench.expect("a")
        for _ in range(3000):
            chain.append(bench.submit("b", after=chain[-1:]))
        assert all(bench.queue.cancel(transfer) for transfer in chain[1:])
        bench.let_go("a")
        assert len(bench.drain(3001)) == 3001 and bench.begun == ["a"]


class TestEnds:
    def test_an_exception_fails_all_pages_and_the_lane_lives_on(self, bench: Bench) -> None:
        bench.errors["a"] = OSError("no such luck")
        a = bench.submit("a", pages=3)
        b = bench.submit("b", after=[a])
        bench.let_go("a", "b")
        assert bench.drain(2) == ["a", "b"]
        assert a.failed.tolist() == [0, 1, 2] and a.failed.dtype == np.int64 and not len(b.failed)
        (line,) = bench.queue.problems()
        assert line == "host->device: 3 pages were not copied: OSError('no such luck')"
        assert bench.queue.problems() == []

    def test_times_are_the_clocks(self, bench: Bench) -> None:
        before_s = bench.clock.now()
        a = bench.submit("a")
        bench.expect("a")
        assert a.end_s is None and not a.done and bench.queue.in_flight
        bench.let_go("a")
        bench.queue.wait()
        assert before_s <= a.submitted_s <= a.start_s <= a.end_s <= bench.clock.now()
        assert a.end_s - a.start_s >= 0.02 and a.layer_ends_s == [a.end_s]
        assert bench.queue.in_flight
        bench.queue.poll()
        assert not bench.queue.in_flight

    def test_waiting(self, bench: Bench) -> None:
        bench.queue.wait()  # nothing is in flight: at once
        bench.submit("a")
        bench.submit("b", "down")
        start_s = time.perf_counter()
        bench.queue.wait(timeout_s=0.03)
        assert time.perf_counter() - start_s >= 0.025 and bench.queue.poll() == []
        bench.let_go("b")
        bench.queue.wait()
        bench.queue.wait()  # it was not polled
        assert [transfer.move.reason for transfer in bench.queue.poll()] == ["b"]

    def test_a_transfer_that_never_ends_is_named(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transfer_queue, "GUARD_S", 0.02)
        monkeypatch.setattr(torch_transfer, "GUARD_S", 0.02)
        a = bench.submit("a", pages=2)
        bench.expect("a")
        with pytest.raises(TimeoutError, match=r"none of 1 transfers ended in 0.02 s: host->device running"):
            bench.queue.wait()
        with pytest.raises(TimeoutError, match=r"host->device: 2 pages did not arrive in 0.02 s"):
            a.wait()


class TestClosing:
    def test_finishes_what_it_must_and_what_that_waits_for(self) -> None:
        bench = Bench()
        a = bench.submit("a", "up")
        bench.expect("a")
        b = bench.submit("b", "up")
        e = bench.submit("e", "up", after=[a])
        c = bench.submit("c", "up", after=[e])
        d = bench.submit("d", "down", after=[c])
        threading.Thread(target=lambda: (bench.until_closing(), bench.let_go(*"abcde"))).start()
        assert bench.queue.close(lambda move: move.reason == "d")
        assert bench.begun == list("aecd") and b.cancelled and not d.cancelled
        assert not any(thread.is_alive() for thread in bench.queue._threads)
        assert bench.queue.close(lambda move: True)
        with pytest.raises(ValueError, match="the links are closed"):
            bench.submit("e")

    def test_a_thread_that_does_not_come_back_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bench = Bench()
        bench.submit("a")
        bench.expect("a")
        monkeypatch.setattr(transfer_queue, "GUARD_S", 0.02)
        assert not bench.queue.close(lambda move: True)
        bench.let_go("a")
        for thread in bench.queue._threads:
            thread.join(PATIENCE_S)


def test_strangers_are_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="of other links"):
        bench.submit("a", after=[Transfer(make_move(), 1, 1, 0.0)])
    ended = Transfer(make_move(), 1, 1, 0.0, end_s=1.0)
    bench.submit("b", after=[ended])
    bench.expect("b")


class Marks:
    def __init__(self) -> None:
        self.waited = 0

    def wait(self) -> None:
        self.waited += 1


class TestLayers:
    @pytest.fixture
    def loading(self, bench: Bench) -> Callable[..., Any]:
        def begin(**options: Any) -> Any:
            transfer = bench.queue.submit("up", make_move("a", **options), 1, 4, 0.0, [])
            bench.expect("a")
            return transfer

        return begin

    def test_each_is_waited_for_by_itself(self, bench: Bench, loading: Callable[..., Any]) -> None:
        transfer = loading()
        bench.queue.arrived(transfer, 2)
        assert transfer.wait(0) == transfer.wait(1) == 0.0
        assert blocked(lambda: transfer.wait(2), transfer, lambda: bench.queue.arrived(transfer, 1)) > 0.0
        assert not transfer.done and transfer.arrived == 3
        assert blocked(lambda: transfer.wait(3), transfer, lambda: bench.let_go("a")) > 0.0
        assert transfer.done
        bench.queue.wait()
        assert len(transfer.layer_ends_s) == 4 and transfer.layer_ends_s == sorted(transfer.layer_ends_s)

    def test_others_than_the_moves_are_there_already(self, bench: Bench, loading: Callable[..., Any]) -> None:
        transfer = loading(layers=(2, 4))
        assert transfer.wait(0) == transfer.wait(1) == transfer.wait(6) == 0.0
        bench.queue.arrived(transfer, 1)
        assert transfer.wait(2) == 0.0
        assert blocked(lambda: transfer.wait(5), transfer, lambda: bench.queue.arrived(transfer, 3)) > 0.0

    def test_on_a_device_the_mark_is_waited_for(self, bench: Bench, loading: Callable[..., Any]) -> None:
        transfer, marks = loading(layers=(1, 3)), Marks()
        bench.queue.arrived(transfer, 2, marks)
        transfer.wait(0)
        assert marks.waited == 0
        transfer.wait(1)
        transfer.wait(2)
        assert marks.waited == 2
        assert transfer.layer_ends_s == []


class TestGate:
    def failed(self, bench: Bench) -> Any:
        bench.errors["a"] = OSError("gone")
        transfer = bench.submit("a", pages=2)
        bench.let_go("a")
        bench.drain(1)
        return transfer

    def test_without_anything_it_is_open(self) -> None:
        gate = torch_transfer.LayerGate()
        gate.enter()
        gate.attend(0)
        assert gate.stall_s == 0.0

    def test_counts_what_it_waited(self, bench: Bench) -> None:
        a, b = bench.submit("a"), bench.submit("b", "down")
        gate = torch_transfer.LayerGate([a], [b])
        blocked(gate.enter, a, lambda: bench.let_go("a"))
        assert a.done and not b.done and gate.stall_s > 0.0
        before_s = gate.stall_s
        blocked(lambda: gate.attend(0), b, lambda: bench.let_go("b"))
        assert b.done and gate.stall_s > before_s

    def test_computes_with_nothing_that_did_not_arrive(self, bench: Bench) -> None:
        transfer = self.failed(bench)
        with pytest.raises(RuntimeError, match="did not arrive"):
            torch_transfer.LayerGate(loads=[transfer]).attend(0)
        with pytest.raises(RuntimeError, match="did not arrive"):
            torch_transfer.LayerGate(waits=[transfer]).enter()
        _, cancelled = bench.submit("b"), bench.submit("c")
        assert bench.queue.cancel(cancelled)
        torch_transfer.LayerGate(waits=[cancelled]).enter()
        with pytest.raises(RuntimeError, match="did not arrive"):
            torch_transfer.LayerGate(loads=[cancelled]).attend(0)

    def test_takes_no_other_links_transfers(self) -> None:
        with pytest.raises(TypeError, match="Transfer was not made by the links of the torch backend"):
            torch_transfer.LayerGate([Transfer(make_move(), 1, 1, 0.0)]).enter()
        torch_transfer.LayerGate([Transfer(make_move(), 1, 1, 0.0, end_s=1.0)]).enter()
