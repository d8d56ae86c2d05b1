"""Moves are kept apart wherever two touch one slot, however long ago the others were submitted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from kvarena.framework.execution.transfers import Transfer
from kvarena.framework.memory import PageStore
from kvarena.framework.memory.moves import Move
from kvarena.framework.metrics import KeptRecords
from kvarena.framework.policy import Tier
from kvarena.framework.traffic import Traffic
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.writeback.none import NoWriteback

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyCosts, ToyLinks

DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK


class Noted(ToyLinks):
    """Remembers what each transfer had to wait for; a transfer ends when it is told to."""

    def __init__(self) -> None:
        super().__init__({tier: np.zeros((8, 1), np.int64) for tier in (DEVICE, HOST, DISK)})
        self.after: dict[Transfer, set[Transfer]] = {}

    def submit(self, move, now_s, after=()):  # type: ignore[no-untyped-def]
        transfer = super().submit(move, now_s, after)
        self.after[transfer] = set(after)
        self.planned[transfer] = (now_s, 1e9)
        return transfer

    def end(self, transfer: Transfer) -> None:
        self.planned[transfer] = (0.0, self.reached_s)


def traffic() -> tuple[Traffic, PageStore, Noted]:
    capacity = dict.fromkeys((DEVICE, HOST, DISK), 8)
    evictions = {tier: LRU() for tier in capacity}
    store = PageStore(1, capacity, evictions, costs=ToyCosts(), writeback=NoWriteback())
    links = Noted()
    return Traffic(store, links, KeptRecords()), store, links


def move(source: Tier, target: Tier, source_slot: int, target_slot: int, reason: str = "swap-out") -> Move:
    slots = [np.array([slot], np.int32) for slot in (source_slot, target_slot)]
    return Move(source, target, *slots, np.array([7]), np.array([0]), reason, urgent=reason != "swap-out")


def submit(flow: Traffic, store: PageStore, *moves: Move) -> list[Transfer]:
    for one in moves:
        store.outbox.add(one)
    return flow.flush(0.0)


def test_who_overwrites_a_slot_waits_for_all_its_readers_even_if_the_last_one_has_ended() -> None:
    flow, store, links = traffic()
    (slow,) = submit(flow, store, move(HOST, DISK, 3, 0))
    (fast,) = submit(flow, store, move(HOST, DEVICE, 3, 1, "swap-in"))
    links.end(fast)
    assert flow.ended(0.0) == [fast]
    (writer,) = submit(flow, store, move(DEVICE, HOST, 5, 3))
    assert links.after[writer] == {slow}


def test_what_was_called_off_still_stands_for_what_it_waited_for() -> None:
    flow, store, links = traffic()
    (reader,) = submit(flow, store, move(HOST, DEVICE, 2, 0, "swap-in"))
    (fetch,) = submit(flow, store, move(DISK, HOST, 0, 2, "fetch"))
    assert links.after[fetch] == {reader}
    links.planned[fetch] = (5.0, 6.0)
    flow.cancel([fetch])
    assert fetch in flow.ended(0.0)
    (writer,) = submit(flow, store, move(DEVICE, HOST, 4, 2))
    assert links.after[writer] == {reader}


def test_an_iteration_waits_for_readers_and_writers_of_its_slots_alone() -> None:
    flow, store, _ = traffic()
    out, load = submit(flow, store, move(DEVICE, HOST, 1, 1), move(HOST, DEVICE, 6, 2, "swap-in"))
    assert flow.blocking(np.array([1], np.int32)) == [out]
    assert flow.blocking(np.array([2], np.int32)) == [load]
    assert flow.blocking(np.array([3], np.int32)) == []


def test_nothing_is_remembered_of_what_has_ended() -> None:
    flow, store, links = traffic()
    for slot in range(200):
        started = submit(flow, store, move(HOST, DISK, slot % 8, slot % 8), move(HOST, DEVICE, slot % 8, 1, "swap-in"))
        for transfer in started:
            links.end(transfer)
        assert flow.ended(0.0) == started
    assert not flow.busy and not flow._also and not flow._number


def test_links_of_different_speed(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A disk a hundred times slower than the host: its writes are still reading long after."""
    from test_lossless import make
    from toy import ToyWorkload, serve

    from kvarena.policies.scheduling.chunked import Chunked

    submit_before = ToyLinks.submit

    def slow_disk(self, move, now_s, after=()):  # type: ignore[no-untyped-def]
        self.page_s = 0.2 if move.target is DISK else 2e-3
        return submit_before(self, move, now_s, after)

    monkeypatch.setattr(ToyLinks, "submit", slow_disk)
    rng = np.random.default_rng(5)
    moved = 0
    for seed in range(20):
        turns = [
            [(rng.integers(0, 6, rng.integers(1, 9)).tolist(), int(rng.integers(1, 8))) for _ in range(4)]
            for _ in range(8)
        ]
        workload = ToyWorkload(turns, 0.05, 0.02)
        run = serve(
            workload,
            -(-workload.longest() // 2) + 2,
            2,
            eviction=make("eviction", "lru"),
            prefetch=make("prefetch", "layerwise"),
            scheduling=Chunked(),
            writeback=make("writeback", "save_layerwise"),
            below={HOST: 12, DISK: 60},
            seed=seed,
        )
        assert run.recording.outputs() == workload.expected()
        moved += run.links.moves["host->disk"]
    assert moved > 500
