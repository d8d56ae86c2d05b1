"""Pages that move between real pools and a disk: always what a copy in the order given would have left."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from kvarena.framework.execution.clocks import SkipIdleClock  # noqa: E402
from kvarena.framework.execution.host_pool import lazy_zeros  # noqa: E402
from kvarena.framework.execution.page_copies import HostCopies, layers_per_step  # noqa: E402
from kvarena.framework.execution.torch_links import TorchLinks  # noqa: E402
from kvarena.framework.memory.moves import Move  # noqa: E402
from kvarena.framework.policy import Tier  # noqa: E402

DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK
LAYERS, PAGES = 4, {DEVICE: 5, HOST: 7, DISK: 6}
SHAPE = (LAYERS, 2, 2, 3, 4)
PAGE_BYTES = math.prod(SHAPE) * 4


class MemoryDisk:
    """Pages in memory, that fail when told so."""

    def __init__(self, num_pages: int = PAGES[DISK], page_bytes: int = PAGE_BYTES) -> None:
        self.pages = np.zeros((num_pages, page_bytes), np.uint8)
        self.keys = np.full(num_pages, -1, np.int64)
        self.parents = np.full(num_pages, -1, np.int64)
        self.broken: set[int] = set()
        self.error: Exception | None = None
        self.calls: list[int] = []
        self.closed = 0
        self.lines: list[str] = []

    def read(self, slots: Any, keys: Any, out: Any, rows: Any = None) -> np.ndarray:
        rows = self._call(slots, out, rows)
        failed = [i for i, slot in enumerate(slots) if slot in self.broken or self.keys[slot] != keys[i]]
        right = np.setdiff1d(np.arange(len(slots)), failed)
        out[rows[right]] = self.pages[slots[right]]
        return np.array(failed, np.int64)

    def write(self, slots: Any, keys: Any, parents: Any, data: Any, rows: Any = None) -> np.ndarray:
        rows = self._call(slots, data, rows)
        failed = np.array([i for i, slot in enumerate(slots) if slot in self.broken], np.int64)
        kept = np.setdiff1d(np.arange(len(slots)), failed)
        self.pages[slots[kept]], self.keys[slots[kept]] = data[rows[kept]], keys[kept]
        self.parents[slots[kept]] = parents[kept]
        return failed

    def _call(self, slots: np.ndarray, data: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        assert data.shape[1:] == self.pages.shape[1:] and data.dtype == np.uint8
        assert data.flags.c_contiguous and data.flags.writeable
        assert rows is not None or len(data) == len(slots)
        self.calls.append(len(slots))
        if self.error is not None:
            raise self.error
        return np.arange(len(slots)) if rows is None else rows

    def problems(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines

    def close(self) -> None:
        self.closed += 1


class SlowCopies(HostCopies):
    """Takes ``pause()`` seconds before each step, which is one layer."""

    def __init__(self, pause: Callable[[], float]) -> None:
        super().__init__()
        self.pause = pause

    def copy(self, pools: Any, slots: Any, layers: Any, arrived: Any = None) -> None:
        first, count = layers
        for layer in range(first, first + count):
            time.sleep(self.pause())
            super().copy(pools, slots, (layer, 1), arrived)


def make_pool(pages: int, seed: int) -> Any:
    return torch.randn(pages, *SHAPE, generator=torch.Generator().manual_seed(seed))


def make_move(source: Tier, target: Tier, froms: Any, tos: Any, keys: Any = None, **options: Any) -> Move:
    keys = np.arange(100, 100 + len(froms)) if keys is None else np.asarray(keys)
    slots = (np.asarray(side, dtype=np.int32) for side in (froms, tos))
    return Move(source, target, *slots, keys.astype(np.int64), keys.astype(np.int64) - 1, "test", **options)


class Rig:
    """Three small tiers and their links; ``staged``: as if the disk could reach no pool."""

    def __init__(self, pause: Callable[[], float] | None = None, staging_pages: int = 2, staged: bool = False) -> None:
        self.device, self.host, self.disk = make_pool(PAGES[DEVICE], 1), make_pool(PAGES[HOST], 2), MemoryDisk()
        self.clock = SkipIdleClock()
        self.links = TorchLinks(
            *(self.device, self.host, self.disk, self.clock),
            make_copies=None if pause is None else lambda: SlowCopies(pause),
            staging_bytes=staging_pages * PAGE_BYTES,
        )
        if staged:
            self.links._bytes = {}

    def submit(self, *move: Any, after: Any = (), **options: Any) -> Any:
        return self.links.submit(make_move(*move, **options), self.clock.now(), after)

    def drain(self) -> list[Any]:
        ended: list[Any] = []
        while self.links.next_end_s(self.clock.now()) < math.inf:
            self.links.wait()
            ended += self.links.poll(self.clock.now())
        return ended


@pytest.fixture(params=[False, True], ids=["direct", "staged"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(staged=request.param)
    yield rig
    rig.links.close()


class TestOneMove:
    def test_up_and_down(self, rig: Rig) -> None:
        host, device = rig.host.clone(), rig.device.clone()
        down = rig.submit(DEVICE, HOST, [4, 0], [1, 6])
        up = rig.submit(HOST, DEVICE, [2, 3], [1, 2])
        assert {down, up} == set(rig.drain())
        assert torch.equal(rig.host[[1, 6]], device[[4, 0]]) and torch.equal(rig.device[[1, 2]], host[[2, 3]])
        assert torch.equal(rig.host[[0, 2, 3, 4, 5]], host[[0, 2, 3, 4, 5]])
        assert torch.equal(rig.device[[0, 3, 4]], device[[0, 3, 4]])
        assert up.num_bytes == 2 * PAGE_BYTES and up.layers == LAYERS and down.layers == 1
        assert len(up.layer_ends_s) == LAYERS and len(down.layer_ends_s) == 1

    @pytest.mark.parametrize(("source", "target"), [(HOST, DEVICE), (DEVICE, HOST), (DISK, DEVICE)])
    def test_some_layers_only(self, rig: Rig, source: Tier, target: Tier) -> None:
        rig.drain()
        rig.submit(HOST, DISK, [5], [3], keys=[7])
        rig.drain()
        pools = {HOST: rig.host, DEVICE: rig.device}
        before = {tier: pool.clone() for tier, pool in pools.items()}
        content = before[HOST][5] if source == DISK else before[source][3]
        transfer = rig.submit(source, target, [3], [2], keys=[7], layers=(1, 2))
        rig.drain()
        assert transfer.num_bytes == PAGE_BYTES // 2
        assert torch.equal(pools[target][2, 1:3], content[1:3])
        before[target][2, 1:3] = content[1:3]
        assert all(torch.equal(pools[tier], before[tier]) for tier in pools)

    @pytest.mark.parametrize("memory", [HOST, DEVICE])
    def test_through_the_disk(self, rig: Rig, memory: Tier) -> None:
        pool = {HOST: rig.host, DEVICE: rig.device}[memory]
        before = pool.clone()
        rig.submit(memory, DISK, [0, 1, 2, 3, 4], [5, 4, 1, 0, 2])
        rig.drain()
        assert rig.disk.calls == ([5] if rig.links._bytes else [2, 2, 1])
        assert rig.disk.keys.tolist() == [103, 102, 104, -1, 101, 100] and rig.disk.parents[5] == 99
        rig.submit(DISK, memory, [2, 0, 1, 4, 5], [0, 1, 2, 3, 4], keys=[104, 103, 102, 101, 100])
        (back,) = rig.drain()
        assert torch.equal(pool[:5], before[[4, 3, 2, 1, 0]]) and not len(back.failed)

    def test_nothing_at_all(self, rig: Rig) -> None:
        rig.submit(HOST, DEVICE, [], [])
        rig.submit(DISK, HOST, [], [])
        assert [len(transfer.failed) for transfer in rig.drain()] == [0, 0]


class TestFailures:
    def test_failed_reads_are_named_and_leave_their_targets_alone(self, rig: Rig) -> None:
        rig.submit(HOST, DISK, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
        rig.drain()
        rig.disk.broken = {1}
        before = rig.device.clone()
        rig.submit(DISK, DEVICE, [0, 1, 2, 3, 4], [4, 3, 2, 1, 0], keys=[100, 101, 102, 999, 104])
        (transfer,) = rig.drain()
        assert transfer.failed.tolist() == [1, 3] and transfer.failed.dtype == np.int64
        assert torch.equal(rig.device[[4, 2, 0]], rig.host[[0, 2, 4]])
        assert torch.equal(rig.device[[3, 1]], before[[3, 1]])

    def test_failed_writes_are_named(self, rig: Rig) -> None:
        rig.disk.broken = {0, 4}
        rig.submit(DEVICE, DISK, [0, 1, 2, 3, 4], [4, 3, 2, 1, 0])
        (transfer,) = rig.drain()
        assert transfer.failed.tolist() == [0, 4] and rig.disk.keys.tolist() == [-1, 103, 102, 101, -1, -1]

    def test_an_exception_fails_the_move_and_spares_the_next(self, rig: Rig) -> None:
        rig.disk.error = OSError("the disk is gone")
        first = rig.submit(HOST, DISK, [0, 1, 2], [0, 1, 2])
        rig.drain()
        rig.disk.error = None
        second = rig.submit(HOST, DISK, [0, 1, 2], [0, 1, 2])
        rig.drain()
        assert first.failed.tolist() == [0, 1, 2] and second.failed.tolist() == []
        rig.disk.lines = ["disk: something else"]
        assert rig.links.problems() == [
            "host->disk: 3 pages were not copied: OSError('the disk is gone')",
            "disk: something else",
        ]
        assert rig.links.problems() == []


MOVES = [(HOST, DEVICE), (DEVICE, HOST), (DISK, HOST), (HOST, DISK), (DEVICE, DISK), (DISK, DEVICE)]


@st.composite
def moves(draw: st.DrawFn) -> Move:
    source, target = draw(st.sampled_from(MOVES))
    pages = draw(st.integers(1, min(PAGES[source], PAGES[target])))
    froms = draw(st.permutations(range(PAGES[source])))[:pages]
    tos = draw(st.permutations(range(PAGES[target])))[:pages]
    disk_slots = froms if source == DISK else tos
    keys = [slot if draw(st.integers(0, 7)) else 50 for slot in disk_slots]  # now and then another page's
    layers = None
    if target != DISK and draw(st.booleans()):
        first = draw(st.integers(0, LAYERS - 1))
        layers = (first, draw(st.integers(1, LAYERS - first)))
    options = {name: draw(st.booleans()) for name in ("urgent", "yields")}
    return make_move(source, target, froms, tos, keys, layers=layers, **options)


def conflicts(first: Move, second: Move) -> bool:
    """They touch a slot that one of them writes."""
    sides = [
        (first.target, first.target_slots, second.source, second.source_slots),
        (first.source, first.source_slots, second.target, second.target_slots),
        (first.target, first.target_slots, second.target, second.target_slots),
    ]
    return any(one == other and len(np.intersect1d(a, b)) for one, a, other, b in sides)


def carry_out(move: Move, pools: dict[Tier, Any], keys: np.ndarray) -> list[int]:
    """The reference: page after page."""
    first, count = move.layers or (0, LAYERS)
    failed = []
    for i, (start, end) in enumerate(zip(move.source_slots, move.target_slots, strict=True)):
        if move.source == DISK and keys[start] != move.keys[i]:
            failed.append(i)
            continue
        pools[move.target][end, first : first + count] = pools[move.source][start, first : first + count]
        if move.target == DISK:
            keys[end] = move.keys[i]
    return failed


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(moves=st.lists(moves(), max_size=14), cancelled=st.sets(st.integers(0, 13), max_size=3), seed=st.integers(0, 99))
def test_any_moves_leave_what_copying_in_order_leaves(moves: list[Move], cancelled: set[int], seed: int) -> None:
    rng = random.Random(seed)
    pauses = [0.0, 0.0, 0.0, 0.0003]
    rig = Rig(lambda: rng.choice(pauses), staging_pages=rng.choice([1, 2, 10]), staged=rng.random() < 0.5)
    pools = {DEVICE: rig.device.clone(), HOST: rig.host.clone(), DISK: torch.zeros(PAGES[DISK], *SHAPE)}
    keys, transfers, ended = np.full(PAGES[DISK], -1), [], []
    expected: dict[Any, list[int]] = {}
    for number, move in enumerate(moves):
        after = [other for other in transfers if conflicts(other.move, move)]
        transfer = rig.links.submit(move, rig.clock.now(), after)
        transfers.append(transfer)
        if number not in cancelled or not rig.links.cancel(transfer):
            expected[transfer] = carry_out(move, pools, keys)
        if rng.random() < 0.2:
            ended += rig.links.poll(rig.clock.now())
    ended += rig.drain()
    rig.links.close()
    assert sorted(ended, key=id) == sorted(transfers, key=id)
    assert [transfer.end_s for transfer in ended] == sorted(transfer.end_s for transfer in ended)
    assert all(torch.equal(pools[tier], pool) for tier, pool in ((DEVICE, rig.device), (HOST, rig.host)))
    assert np.array_equal(pools[DISK].view(PAGES[DISK], -1).view(torch.uint8).numpy(), rig.disk.pages)
    for transfer, failed in expected.items():
        assert transfer.failed.tolist() == failed
        assert transfer.submitted_s <= transfer.start_s <= transfer.end_s
    assert rig.links.problems() == []


def test_both_directions_and_the_disk_at_once() -> None:
    meeting = threading.Barrier(3, timeout=10.0)  # each waits for the others before each of its layers
    rig = Rig(lambda: meeting.wait() * 0.0)
    ways = [(HOST, DEVICE, [0], [0]), (DEVICE, HOST, [1], [1]), (DEVICE, DISK, [2], [2])]
    rig.links._bytes = {}  # so that the copy to the disk takes time too
    transfers = [rig.submit(*way) for way in ways]
    rig.drain()
    assert max(t.start_s for t in transfers) < min(t.end_s for t in transfers)
    rig.links.close()
    assert rig.links.problems() == []


def test_a_copy_leaves_python_to_others() -> None:
    shape = (64, 4, 2, 8, 64, 128)
    source, target = torch.ones(shape), lazy_zeros(shape, torch.float32)
    links = TorchLinks(target, source, None, clock := SkipIdleClock())
    slots = np.arange(64, dtype=np.int32)
    big = Move(HOST, DEVICE, slots, slots, slots.astype(np.int64), slots.astype(np.int64), "test")
    transfer = links.submit(big, clock.now())
    ticks = 0
    while not transfer.done:
        ticks += 1
    links.close()
    assert torch.equal(source, target)
    assert ticks > 100  # turns of this loop while 128 MiB were copied


class TestLifetime:
    def threads(self) -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("kvarena-")]

    def test_threads_end_with_the_links(self) -> None:
        before = len(self.threads())
        rig = Rig()
        assert len(self.threads()) == before + 4
        rig.submit(HOST, DEVICE, [0], [0])
        rig.links.close()
        rig.links.close()
        assert len(self.threads()) == before and rig.disk.closed == 1
        with pytest.raises(ValueError, match="there is no link"):
            rig.submit(HOST, DEVICE, [0], [0])

    def test_only_the_tiers_there_are(self) -> None:
        before = len(self.threads())
        links = TorchLinks(make_pool(3, 0), None, None, SkipIdleClock())
        assert len(self.threads()) == before
        links.wait()
        assert links.poll(0.0) == [] and links.next_end_s(0.0) == math.inf and links.problems() == []
        with pytest.raises(ValueError, match=r"there is no link host->device; the tiers are DEVICE"):
            links.submit(make_move(HOST, DEVICE, [0], [0]), 0.0)
        links.close()

    def test_a_disk_without_a_host(self) -> None:
        device, disk = make_pool(PAGES[DEVICE], 0), MemoryDisk()
        before = device.clone()
        links = TorchLinks(device, None, disk, clock := SkipIdleClock())
        out = links.submit(make_move(DEVICE, DISK, [0, 1], [3, 4]), clock.now())
        links.submit(make_move(DISK, DEVICE, [3, 4], [1, 0]), clock.now(), [out])
        while links.next_end_s(0.0) < math.inf:
            links.wait()
            links.poll(0.0)
        links.close()
        assert torch.equal(device[:2], before[[1, 0]])

    def test_closing_finishes_what_goes_to_the_disk(self) -> None:
        def until_closing() -> float:
            while not rig.links._queue._closing:
                time.sleep(0.001)
            return 0.0

        rig = Rig(until_closing, staged=True)
        content = rig.device[2].clone()
        down = rig.submit(DEVICE, HOST, [2], [2])
        rig.submit(HOST, DISK, [2], [5], keys=[9], after=[down])
        up = rig.submit(HOST, DEVICE, [2], [2], after=[down])
        rig.links.close()
        assert rig.disk.keys[5] == 9 and up.cancelled
        assert rig.disk.pages[5].tobytes() == content.numpy().tobytes()


class TestRefusals:
    @pytest.mark.parametrize(
        ("move", "options", "message"),
        [
            ((DEVICE, DEVICE, [0], [1]), {}, "there is no link device->device"),
            ((HOST, Tier.REMOTE, [0], [1]), {}, "there is no link host->remote; the tiers are DEVICE, HOST, DISK"),
            ((HOST, DEVICE, [7], [1]), {}, r"HOST slots 7\.\.7, expected 0\.\.6"),
            ((HOST, DEVICE, [0, 1], [-1, 4]), {}, r"DEVICE slots -1\.\.4, expected 0\.\.4"),
            ((HOST, DEVICE, [0, 1], [1]), {}, r"slots int32 \(1,\) for 2 keys"),
            ((HOST, DEVICE, [0], [1]), {"layers": (3, 2)}, r"of layers \(3, 2\), expected some of 4"),
            ((HOST, DISK, [0], [1]), {"layers": (0, 2)}, "the disk holds whole pages"),
        ],
    )
    def test_moves(self, rig: Rig, move: Any, options: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            rig.submit(*move, **options)
        assert rig.links.next_end_s(0.0) == math.inf

    def test_pools_that_differ(self) -> None:
        with pytest.raises(ValueError, match="does not match the device pool"):
            TorchLinks(make_pool(2, 0), make_pool(2, 0)[:, :2], None, SkipIdleClock())
        with pytest.raises(ValueError, match="does not match the device pool"):
            TorchLinks(make_pool(2, 0), make_pool(2, 0).half(), None, SkipIdleClock())


@pytest.mark.parametrize(
    ("per_layer", "step", "layers"), [(1, 10, 10), (4, 10, 3), (10, 10, 1), (99, 10, 1), (0, 1, 1)]
)
def test_layers_per_step(per_layer: int, step: int, layers: int) -> None:
    assert layers_per_step(per_layer, step) == layers
