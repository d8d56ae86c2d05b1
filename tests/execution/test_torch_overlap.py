"""A model that computes while its pages move: each layer waits for its own, and the logits are the same to the bit."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvarena.framework.execution.clocks import SkipIdleClock  # noqa: E402
from kvarena.framework.execution.contract import Batch  # noqa: E402
from kvarena.framework.execution.disk import DiskPages  # noqa: E402
from kvarena.framework.execution.host_pool import host_pool  # noqa: E402
from kvarena.framework.execution.page_copies import HostCopies  # noqa: E402
from kvarena.framework.execution.torch_links import TorchLinks  # noqa: E402
from kvarena.framework.execution.torch_transfer import LayerGate  # noqa: E402
from kvarena.framework.memory.moves import Move  # noqa: E402
from kvarena.framework.policy import Tier  # noqa: E402

DEVICE, HOST = Tier.DEVICE, Tier.HOST
LAYERS = 3
PATIENCE_S = 10.0


class SteppedCopies(HostCopies):
    """A layer at a time, each after ``pause``."""

    def __init__(self, pause: Callable[[], Any]) -> None:
        super().__init__()
        self._pause = pause

    def copy(self, pools: Any, slots: Any, layers: Any, arrived: Any = None) -> None:
        for layer in range(layers[0], sum(layers)):
            self._pause()
            super().copy(pools, slots, (layer, 1), arrived)


class Server:
    """A rig's model with a host tier; ``pause`` is called before each layer of each copy."""

    def __init__(self, llama: Any, pause: Callable[[], Any] = lambda: None) -> None:
        self.executor, self.rig, self.pause = llama.executor, llama, pause
        self.clock = SkipIdleClock()
        self.host = host_pool(self.executor.pool, 64)
        self.links = TorchLinks(
            self.executor.pool, self.host, None, self.clock, make_copies=lambda: SteppedCopies(lambda: self.pause())
        )

    def move(self, source: Tier, target: Tier, froms: Any, tos: Any, after: Any = (), **options: Any) -> Any:
        slots = [np.asarray(side, dtype=np.int32) for side in (froms, tos)]
        keys = np.arange(len(slots[0]), dtype=np.int64)
        return self.links.submit(Move(source, target, *slots, keys, keys, "test", **options), self.clock.now(), after)

    def drain(self) -> None:
        while self.links.next_end_s(0.0) < math.inf:
            self.links.wait()
            self.links.poll(0.0)

    def to_host(self, table: np.ndarray) -> np.ndarray:
        """Move the pages of ``table`` to the host and spoil them on the device; their slots there."""
        slots = np.arange(len(table), dtype=np.int32)[::-1] + 5
        self.move(DEVICE, HOST, table, slots)
        self.drain()
        self.executor.pool[torch.from_numpy(table).long()] = math.nan
        return slots


@pytest.fixture
def llama(rig: Any) -> Any:
    return rig("llama", num_kv_heads=2)


@pytest.fixture
def server(llama: Any) -> Iterator[Server]:
    server = Server(llama)
    yield server
    server.pause = lambda: None
    server.links.close()


class Watch(LayerGate):
    """A gate that notes how many layers had arrived when each layer went through."""

    def __init__(self) -> None:
        self.reached, self.held, self.arrived = 0, 0, []
        self.loads: list[Any] = []
        super().__init__(loads=self.loads)

    def attend(self, layer: int) -> None:
        self.reached += 1
        super().attend(layer)
        self.arrived.append(self.loads[0].arrived)

    def hold(self) -> None:
        """For the copies: begin a layer a little after the model has come to it."""
        self.held += 1
        deadline_s = time.monotonic() + PATIENCE_S
        while self.reached < self.held:
            assert time.monotonic() < deadline_s, "the model does not come to this layer"
            time.sleep(0.001)
        time.sleep(0.01)


@pytest.mark.parametrize("history", [40, 38], ids=["whole pages", "a partial tail"])
def test_loaded_history_gives_the_same_logits_to_the_bit(server: Server, segment: Any, history: int) -> None:
    """With a partial tail the first new token is written into the last loaded page."""
    ids, table = server.rig.context(48)
    server.executor.logits([segment(ids, table, 0, history)])
    held = table[: -(-history // 4)]
    kept = server.executor.pool[torch.from_numpy(held).long()].clone()
    expected = server.executor.logits([segment(ids, table, history, 48)])
    server.executor.pool[torch.from_numpy(held).long()] = kept
    slots = server.to_host(held)
    watch = Watch()
    server.pause = watch.hold
    watch.loads.append(server.move(HOST, DEVICE, slots, held))
    logits = server.executor.logits([segment(ids, table, history, 48)], watch)
    assert torch.equal(logits, expected)
    torch.testing.assert_close(logits[0], server.rig.expected(ids)[-1], rtol=1e-4, atol=2e-5)
    assert watch.arrived == [1, 2, 3], "a layer did not begin when its own part had arrived"
    assert watch.stall_s > 0.01


def test_a_gate_that_does_not_wait_is_noticed(server: Server, segment: Any) -> None:
    ids, table = server.rig.context(44)
    server.executor.logits([segment(ids, table, 0, 40)])
    slots = server.to_host(table[:10])
    go = threading.Event()
    server.pause = lambda: go.wait(PATIENCE_S)
    server.move(HOST, DEVICE, slots, table[:10])
    assert server.executor.logits([segment(ids, table, 40, 44)]).isnan().any()
    go.set()


def test_loads_of_layer_ranges_through_run(server: Server, segment: Any) -> None:
    ids, table = server.rig.context(44)
    server.executor.logits([segment(ids, table, 0, 40)])
    before = server.executor.pool.clone()
    slots = server.to_host(table[:10])
    go = threading.Event()
    server.pause = lambda: go.wait(PATIENCE_S)
    early = server.move(HOST, DEVICE, slots, table[:10], layers=(0, 1))
    late = server.move(HOST, DEVICE, slots, table[:10], layers=(1, 2))
    threading.Timer(0.1, go.set).start()
    result = server.executor.run(Batch([segment(ids, table, 40, 44)], loads=[early, late]))
    assert result.tokens == [int(server.rig.expected(ids)[-1].argmax())]
    assert 0.0 < result.stall_s < result.forward_s <= result.duration_s
    assert torch.equal(server.executor.pool[torch.from_numpy(table[:10]).long()], before[torch.from_numpy(table[:10])])
    server.drain()
    assert early.start_s < early.end_s <= late.start_s < late.end_s
    assert late.layers == 2 and len(late.layer_ends_s) == 2


def test_nothing_is_overwritten_that_is_still_read(server: Server, segment: Any) -> None:
    ids, table = server.rig.context(20)
    server.executor.logits([segment(ids, table, 0, 20)])
    before = server.executor.pool[torch.from_numpy(table).long()].clone()
    go = threading.Event()
    server.pause = lambda: go.wait(PATIENCE_S)
    down = server.move(DEVICE, HOST, table, np.arange(5))
    other = server.rig.context(20)[0][::-1].copy()
    threading.Timer(0.1, go.set).start()
    result = server.executor.run(Batch([segment(other, table, 0, 20)], waits=[down]))
    assert 0.0 < result.stall_s <= result.duration_s - result.forward_s
    assert torch.equal(server.host[:5], before)
    assert not torch.equal(server.executor.pool[torch.from_numpy(table).long()], before)


def test_an_iteration_runs_while_others_pages_move(server: Server, segment: Any) -> None:
    ids, table = server.rig.context(20)
    begun, go = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go.wait(PATIENCE_S)

    server.pause = hold
    moving = server.rig.table(8)
    down = server.move(DEVICE, HOST, moving, np.arange(2))
    assert begun.wait(PATIENCE_S)
    start_s = server.clock.now()
    result = server.executor.run(Batch([segment(ids, table, 0, 20)]))
    end_s = server.clock.now()
    assert result.stall_s == 0.0 and not down.done
    go.set()
    server.drain()
    assert down.start_s < start_s < end_s < down.end_s


def test_a_failed_load_gives_no_answer(server: Server, segment: Any) -> None:
    ids, table = server.rig.context(20)

    def fail() -> None:
        raise MemoryError

    server.pause = fail
    load = server.move(HOST, DEVICE, np.arange(4), table[:4])
    with pytest.raises(RuntimeError, match="did not arrive"):
        server.executor.run(Batch([segment(ids, table, 16, 20)], loads=[load]))
    assert server.links.problems() == ["host->device: 4 pages were not copied: MemoryError()"]


def test_pages_that_travel_through_all_tiers_and_back(llama: Any, segment: Any, tmp_path: Path) -> None:
    """Down to the host, on to the disk, spoiled above, and back by both ways into other pages."""

    executor, clock = llama.executor, SkipIdleClock()
    ids, table = llama.context(44)
    executor.logits([segment(ids, table, 0, 40)])
    expected = executor.logits([segment(ids, table, 40, 44)])
    host = host_pool(executor.pool, 10)
    shelf = DiskPages.open(tmp_path / "disk", 40, executor.pool[0].nbytes, "test", persist=False)
    links = TorchLinks(executor.pool, host, shelf, clock)
    slots, disk = np.arange(10, dtype=np.int32), np.arange(30, 40, dtype=np.int32)

    def move(source: Tier, target: Tier, froms: Any, tos: Any, after: list[Any]) -> Any:
        keys = (froms if source == Tier.DISK else tos).astype(np.int64)
        return links.submit(Move(source, target, froms, tos, keys, keys, "test"), clock.now(), after)

    fresh = llama.table(44)
    down = move(DEVICE, HOST, table[:10], slots, [])
    stored = move(HOST, Tier.DISK, slots, disk, [down])
    while not stored.done:
        links.wait()
        links.poll(0.0)
    executor.pool[torch.from_numpy(table).long()] = math.nan
    host.fill_(math.nan)
    direct = move(Tier.DISK, DEVICE, disk[:4], fresh[:4], [])
    fetched = move(Tier.DISK, HOST, disk[4:], slots[:6], [])
    loaded = move(HOST, DEVICE, slots[:6], fresh[4:10], [fetched])
    segments = [segment(ids, fresh, 40, 44)]
    assert executor.run(Batch(segments, waits=[direct], loads=[loaded])).tokens == [int(expected[0].argmax())]
    again = executor.logits([segment(ids, fresh, 40, 44, write=False)])
    links.close()
    assert torch.equal(again, expected)


class TestCosts:
    def test_disk_is_measured_once_if_there_is_one(self, llama: Any) -> None:
        costs, asked = llama.executor.costs, []

        def measure() -> float:
            asked.append(1)
            return 1e6

        costs.disk_bytes_per_s = measure
        read_s = 8 * llama.executor.shape.kv_bytes_per_token / 1e6
        assert costs.load_s(8, Tier.DISK) == pytest.approx(read_s + costs.load_s(8, HOST))
        assert costs.load_s(16, Tier.DISK) == 2 * costs.load_s(8, Tier.DISK)
        assert asked == [1] and costs.load_s(0, Tier.DISK) == 0.0

    def test_no_disk_or_none_worth_reading(self, llama: Any) -> None:
        assert llama.executor.costs.load_s(8, Tier.DISK) == llama.executor.costs.load_s(8, Tier.REMOTE) == math.inf
        slow = type(llama.executor.costs)(llama.executor, 4)
        slow.disk_bytes_per_s = lambda: 0.0
        assert slow.load_s(8, Tier.DISK) == math.inf

    def test_copies_leave_the_pool_alone(self, llama: Any) -> None:
        before = llama.executor.pool.fill_(2.0).clone()
        assert 0 < llama.executor.costs.load_s(1000, HOST) < 1
        assert torch.equal(llama.executor.pool, before)
