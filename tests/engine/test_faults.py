"""A disk to which bad things happen while a real model is served: the run goes on, no token changes, counts tell."""

from __future__ import annotations

import errno
import os
import random
import resource
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvarena.framework.execution import disk_slabs
from kvarena.framework.execution.disk import DiskPages
from kvarena.framework.execution.models import LoadedModel, load_model
from kvarena.framework.memory import PageStore
from kvarena.framework.policy import Tier
from kvarena.policies.scheduling.unified import Unified

sys.path.insert(0, str(Path(__file__).parent))
import toy
from real_tiers import Outcome, open_disk, serve_for_real, stateless
from small_model import KNOBS
from test_lossless import make
from toy import ToyWorkload

PAGE_SIZE = 16
STRIDE = 8192  # of a page: 16 tokens of 512 bytes
DISK = 64
STACKS = {
    "disk below the device": ({Tier.DEVICE: 12}, "holes", "on_evict"),
    "disk below the host": ({Tier.DEVICE: 12, Tier.HOST: 12}, "layerwise", "write_through"),
}
Outputs = dict[tuple[int, int], list[int]]


def chat() -> ToyWorkload:
    """Seven conversations that come back three times: some 75 pages."""
    rng = random.Random(4)
    turns = [[([rng.randrange(97) for _ in range(52)], 4) for _ in range(3)] for _ in range(7)]
    return ToyWorkload(turns, think_s=0.01, gap_s=0.002)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(KNOBS, "cpu", 1)


@pytest.fixture(scope="module")
def expected(model: LoadedModel) -> Outputs:
    return stateless(model, chat(), PAGE_SIZE)


@dataclass
class Bench:
    """Serves the chat with a fault that strikes once, between two iterations, when ``after`` pages are on disk."""

    model: LoadedModel
    expected: Outputs
    stack: str

    def serve(self, disk: DiskPages, fault: Callable[[], None] = lambda: None, after: int = 20) -> Outcome:
        pages, prefetch, writeback = STACKS[self.stack]
        struck: list[int] = []

        def strike() -> None:
            if not struck and (held := len(disk.stored()[0])) >= after:
                struck.append(held)
                fault()

        policies = {"eviction": make("eviction", "lru"), "prefetch": make("prefetch", prefetch)}
        found = serve_for_real(
            *(self.model, chat(), {**pages, Tier.DISK: DISK}, PAGE_SIZE),
            **{"disk": disk, "slow": False, "before": strike, **policies},
            scheduling=Unified(64, 4),
            writeback=make("writeback", writeback),
        )
        assert struck, "the fault never struck"
        assert found.outputs == self.expected
        return found


@pytest.fixture(params=STACKS)
def bench(model: LoadedModel, expected: Outputs, request: pytest.FixtureRequest) -> Bench:
    return Bench(model, expected, request.param)


def opened(bench: Bench, folder: Path, **options: Any) -> DiskPages:
    return open_disk(bench.model, folder, DISK, PAGE_SIZE, **({"persist": True, "slab_bytes": 1 << 30} | options))


def missed(found: Outcome) -> int:
    """Pages that the engine was told of, read or written."""
    return sum(found.run.engine.transit.faults.values())


def from_disk(found: Outcome) -> int:
    return found.moves["disk->host"] + found.moves["disk->device"]


def computed(found: Outcome) -> int:
    """Tokens of prompts that were computed."""
    return sum(step.prefill_tokens + step.recompute_tokens for step in found.run.recording.steps)


def test_a_healthy_disk(bench: Bench, tmp_path: Path) -> None:
    found = bench.serve(opened(bench, tmp_path / "d"))
    assert (found.faults, found.problems, missed(found)) == ({}, [], 0)
    assert from_disk(found) > 50


@pytest.fixture
def small_disk(tmp_path: Path, mount: Callable[[Path, str], Path]) -> Path:
    """A file system of 1 MiB."""
    return mount(tmp_path / "small", "size=1m")


def test_a_disk_that_fills_up(bench: Bench, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_slabs, "_reserve", lambda fd, num_bytes: False)

    def fill() -> None:
        with (small_disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):  # the tier writes meanwhile
            while (status := os.statvfs(small_disk)).f_bavail > 4:
                filler.write(bytes(status.f_frsize))

    found = bench.serve(opened(bench, small_disk / "d"), fill)
    closed_for_writing(found, "No space left on device")


def test_a_quota(bench: Bench, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    disk = opened(bench, tmp_path / "d")
    try:
        found = bench.serve(disk, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (24 * STRIDE, before[1])))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    closed_for_writing(found, "File too large")


def closed_for_writing(found: Outcome, reason: str) -> None:
    """No more pages go to disk, which is said once; those that are there are read."""
    assert set(found.faults) <= {"full", "closed", "key"} and found.faults["full"] >= 1
    said = [line for line in found.problems if "takes no more pages, reading goes on" in line]
    assert len(said) == 1 and reason in said[0]
    assert len(found.problems) == 1 + len(found.faults), found.problems  # a kind is told once
    assert missed(found) == sum(found.faults.values())
    assert from_disk(found) > 0


def test_pages_that_decay(bench: Bench, tmp_path: Path) -> None:
    disk = opened(bench, tmp_path / "d")
    slab = tmp_path / "d/slab-0000.bin"

    def flip() -> None:
        for slot in disk.stored()[0].tolist():
            with slab.open("r+b") as file:
                file.seek(slot * STRIDE + slot % STRIDE)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1 << slot % 8]))

    found = bench.serve(disk, flip)
    assert set(found.faults) <= {"checksum", "key"}
    assert 1 <= found.faults["checksum"] <= missed(found)
    assert any("failed the checksum" in line for line in found.problems)


def test_a_file_cut_short(bench: Bench, tmp_path: Path) -> None:
    disk = opened(bench, tmp_path / "d")
    found = bench.serve(disk, lambda: os.truncate(tmp_path / "d/slab-0000.bin", 2 * STRIDE + 5000))
    assert set(found.faults) <= {"short", "checksum", "key"}  # a page written behind it makes a hole of zeros
    assert found.faults.get("short", 0) + found.faults.get("checksum", 0) >= 1
    assert len(found.problems) == len(found.faults)


def test_a_file_that_vanishes(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is open nothing is lost; the next run misses what was in it and finds the rest."""
    slab = tmp_path / "d/slab-0001.bin"
    first = bench.serve(opened(bench, tmp_path / "d", slab_bytes=16 * STRIDE), slab.unlink)
    assert (first.faults, first.problems) == ({}, [])
    disk = opened(bench, tmp_path / "d", slab_bytes=16 * STRIDE)
    assert 1 <= disk.faults["missing"] <= 16
    assert "lost with a missing file" in disk.problems()[0]
    adopted: list[int] = []

    class Adopting(PageStore):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            adopted.append(self.adopt(Tier.DISK, *disk.stored()))

    monkeypatch.setattr(toy, "PageStore", Adopting)
    found = bench.serve(disk)
    assert adopted[0] > 20
    assert set(found.faults) == {"missing"}
    assert computed(found) < computed(first)


@pytest.mark.parametrize("how", ["read", "write"])
def test_an_error_of_the_device(bench: Bench, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    found = bench.serve(opened(bench, tmp_path / "d"), lambda: monkeypatch.setattr(disk_slabs.Slabs, how, fail))
    assert set(found.faults) <= {"io", "closed", "key"} and found.faults["io"] >= 1
    assert sum("Input/output error" in line for line in found.problems) == 1
    assert missed(found) == sum(found.faults.values())


class Stall:
    """Reads or writes hang while ``hanging``; all of them go on once ``released``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> None:
        self.hanging = False
        self.times = times
        self.released = threading.Event()
        self.lock = threading.Lock()
        true: Callable[..., Any] = getattr(disk_slabs.Slabs, name)

        def work(*arguments: Any) -> Any:
            with self.lock:
                self.times -= self.hanging
                hangs = self.hanging and self.times >= 0
            if hangs:
                self.released.wait(60)
            return true(*arguments)

        monkeypatch.setattr(disk_slabs.Slabs, name, work)

    def begin(self) -> None:
        self.hanging = True


@pytest.mark.parametrize(("how", "times"), [("read", 1), ("write", 1), ("read", 1000), ("write", 1000)])
def test_a_disk_that_hangs(bench: Bench, tmp_path: Path, how: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: those pages are missed. For good: the tier is closed."""
    stall = Stall(monkeypatch, how, times)
    disk = opened(bench, tmp_path / "d", stall_timeout_s=0.05, io_threads=2)
    found = bench.serve(disk, stall.begin)
    stall.released.set()
    assert found.faults["stalled"] >= 1
    assert missed(found) == sum(found.faults.values())
    closed = [line for line in found.problems if "too many I/Os hang; it is closed for this run" in line]
    assert len(closed) == (times > 1), found.problems
    assert ("closed" in found.faults) == (times > 1)
