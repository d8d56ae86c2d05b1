"""A disk tier on real files to which bad things happen: pages are missed, counted and reported, never wrong."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kvarena.framework.execution import disk_faults, disk_slabs
from kvarena.framework.execution.disk import DiskPages
from kvarena.framework.execution.disk_index import SlotIndex

BYTES = 5000
STRIDE = 8192
ALL = list(range(8))


def payload(keys: list[int], page_bytes: int = BYTES) -> NDArray[np.uint8]:
    return np.stack([np.random.default_rng(key).integers(0, 256, page_bytes, np.uint8) for key in keys])


def put(pages: DiskPages, slots: list[int], first_key: int = 100) -> list[int]:
    """Page ``first_key + slot`` into each slot; the slots that failed."""
    keys = [first_key + slot for slot in slots]
    at = np.array(keys, np.int64)
    return [slots[i] for i in pages.write(np.array(slots, np.int32), at, at - 1, payload(keys, pages.page_bytes))]


def missed(pages: DiskPages, slots: list[int], first_key: int = 100) -> list[int]:
    """The slots whose pages could not be had; all others are compared, and theirs must be untouched."""
    keys = [first_key + slot for slot in slots]
    expected, out = payload(keys, pages.page_bytes), np.full((len(keys), pages.page_bytes), 77, np.uint8)
    failed = pages.read(np.array(slots, np.int32), np.array(keys, np.int64), out)
    expected[failed] = 77
    assert np.array_equal(out, expected)
    return [slots[i] for i in failed]


def opened(folder: Path, **options: float) -> DiskPages:
    settings = {"num_pages": 8, "page_bytes": BYTES, "persist": True, "slab_bytes": 4 * STRIDE} | options
    return DiskPages.open(folder, page_format="a", **settings)  # type: ignore[arg-type]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "between runs"])
def test_a_flipped_bit(tmp_path: Path, running: bool) -> None:
    pages = opened(tmp_path / "d")
    put(pages, ALL)
    if not running:
        pages.close()
    for slot, byte in ((1, 0), (5, BYTES - 1)):
        flip(tmp_path / f"d/slab-000{slot // 4}.bin", slot % 4 * STRIDE + byte)
    flip(tmp_path / "d/slab-0000.bin", 2 * STRIDE + BYTES)  # behind the page: nobody's
    if not running:
        pages = opened(tmp_path / "d")
        assert len(pages.stored()[0]) == 8
    assert missed(pages, ALL) == [1, 5]
    assert pages.faults == {"checksum": 2}
    (line,) = pages.problems()
    assert "failed the checksum: 2 so far; they count as misses" in line and str(tmp_path) in line
    assert put(pages, [1]) == missed(pages, [1]) == []
    pages.close()


def test_a_slab_cut_short_while_it_runs(tmp_path: Path) -> None:
    pages = opened(tmp_path / "d")
    put(pages, ALL)
    os.truncate(tmp_path / "d/slab-0001.bin", STRIDE + 1000)
    assert missed(pages, ALL) == [5, 6, 7]
    assert pages.faults == {"short": 3}
    assert put(pages, [6]) == missed(pages, [6]) == []
    pages.close()


@pytest.mark.parametrize(("cut", "kind", "lost"), [(STRIDE + 1000, "short", 3), (None, "missing", 4)])
def test_a_slab_cut_short_or_missing_between_runs(tmp_path: Path, cut: int | None, kind: str, lost: int) -> None:
    pages = opened(tmp_path / "d")
    put(pages, ALL)
    pages.close()
    slab = tmp_path / "d/slab-0001.bin"
    if cut is None:
        slab.unlink()
    else:
        os.truncate(slab, cut)
    pages = opened(tmp_path / "d")
    assert pages.stored()[0].tolist() == ALL[:-lost]
    assert pages.faults == {kind: lost}
    assert len(pages.problems()) == 1
    assert missed(pages, ALL) == ALL[-lost:]
    assert put(pages, ALL[-lost:], 500) == []
    pages.close()
    pages = opened(tmp_path / "d")
    assert not pages.faults
    assert missed(pages, ALL[-lost:], 500) == []
    pages.close()


def test_a_missing_index_is_an_empty_tier(tmp_path: Path) -> None:
    pages = opened(tmp_path / "d")
    put(pages, ALL)
    pages.close()
    (tmp_path / "d/index.bin").unlink()
    pages = opened(tmp_path / "d")
    assert not len(pages.stored()[0])
    assert "its index is missing" in pages.problems()[0]
    assert missed(pages, ALL) == ALL
    pages.close()


def test_a_slot_that_holds_another_page(tmp_path: Path) -> None:
    pages = opened(tmp_path / "d")
    put(pages, ALL)
    put(pages, [3], 900)
    pages.forget(np.array([6]))
    assert missed(pages, ALL) == [3, 6]
    assert missed(pages, [3], 900) == []
    assert pages.faults == {"key": 2}
    pages.close()


def test_an_entry_that_reached_the_disk_without_its_payload(tmp_path: Path) -> None:
    """And the other way round: whatever order the device chose before the power went."""
    pages = opened(tmp_path / "d")
    put(pages, ALL)
    old = {name: (tmp_path / "d" / name).read_bytes() for name in ("slab-0000.bin", "index.bin")}
    put(pages, ALL, 900)
    pages.close()
    for name, kept in old.items():
        new = (tmp_path / "d" / name).read_bytes()
        (tmp_path / "d" / name).write_bytes(kept)
        pages = opened(tmp_path / "d")
        slots, keys, _ = pages.stored()
        assert slots.tolist() == ALL
        assert missed(pages, ALL, int(keys[0])) == (ALL[:4] if name.startswith("slab") else ALL)
        assert pages.faults == {"checksum": 4 if name.startswith("slab") else 8}
        pages.close()
        (tmp_path / "d" / name).write_bytes(new)


def test_a_read_error(tmp_path: Path) -> None:
    pages = opened(tmp_path / "d")
    put(pages, ALL)
    pipe_fds = os.pipe()
    os.dup2(pipe_fds[0], pages._files.slabs._fds[1])  # no file to seek in
    assert missed(pages, ALL) == [4, 5, 6, 7]
    assert pages.faults == {"io": 4}
    assert "(Illegal seek): 4 so far" in pages.problems()[0]
    assert pages.writable
    for fd in pipe_fds:
        os.close(fd)
    pages._threads.run([])
    pages._closed = True  # what is left cannot be synced
    pages._threads.close()
    pages._files.close()
    pages._claim.release(clear=True)


def test_a_kind_that_goes_on_is_told_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(disk_faults.time, "monotonic", lambda: now_s)
    log = disk_faults.FaultLog(tmp_path)
    outcomes = np.array([disk_faults.Outcome.DONE, disk_faults.Outcome.SHORT, disk_faults.Outcome.IO], np.int8)
    for _ in range(5):
        assert log.settle(outcomes).tolist() == [1, 2]
    assert len(log.take()) == 2
    now_s = 1031.0
    log.settle(outcomes)
    assert [line.rpartition(": ")[2] for line in log.take()] == ["6 so far; they count as misses"] * 2
    assert log.counts == {"short": 6, "io": 6}


@pytest.fixture
def small_disk(tmp_path: Path, mount: Callable[[Path, str], Path]) -> Path:
    """A file system of 1 MiB."""
    return mount(tmp_path / "small", "size=1m")


def test_a_disk_too_small_is_refused_at_once(small_disk: Path) -> None:
    needed = 200 * STRIDE + 200 * 64
    with pytest.raises(ValueError, match=rf"no room for the tier: {needed} bytes needed, \d+ free \(No space left"):
        opened(small_disk / "d", num_pages=200)
    assert list(small_disk.iterdir()) == []
    opened(small_disk / "d", num_pages=100).close()


def test_a_limit_that_only_the_reservation_meets_is_refused_too(tmp_path: Path) -> None:
    with file_size_limit(100_000), pytest.raises(ValueError, match=r"bytes needed, \d+ free \(File too large\)"):
        opened(tmp_path / "d", num_pages=100, slab_bytes=1 << 30)
    assert not (tmp_path / "d").exists()


def test_a_disk_that_fills_up_under_a_sparse_file(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_slabs, "_reserve", lambda fd, num_bytes: False)
    pages = opened(small_disk / "d", num_pages=100, slab_bytes=1 << 20)
    assert put(pages, ALL) == []
    status = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes((status.f_bavail - 6) * status.f_frsize))
    more = list(range(8, 100))
    failed = put(pages, more)
    assert len(failed) >= 90 and set(failed) <= set(more)
    assert not pages.writable
    assert pages.faults.keys() <= {"full", "closed"} and pages.faults["full"] >= 1
    assert sum("No space left on device; it takes no more pages" in line for line in pages.problems()) == 1
    assert missed(pages, ALL) == []  # reading goes on
    assert missed(pages, more) == failed
    assert put(pages, [1], 900) == [1]
    assert not any("takes no more" in line for line in pages.problems())
    pages.close()


class file_size_limit:
    """A quota of sorts: no file may be written past ``num_bytes``."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_quota_met_in_the_middle_of_a_run(tmp_path: Path) -> None:
    pages = opened(tmp_path / "d", num_pages=100, slab_bytes=1 << 30)
    with file_size_limit(10 * STRIDE):
        assert put(pages, ALL) == []
        assert put(pages, list(range(60, 70))) == list(range(60, 70))
    assert pages.faults == {"full": 10}
    assert not pages.writable and pages.readable
    assert "File too large; it takes no more pages, reading goes on" in pages.problems()[0]
    assert missed(pages, [*ALL, 65]) == [65]
    pages.close()
    pages = opened(tmp_path / "d", num_pages=100, slab_bytes=1 << 30)
    assert sorted(pages.stored()[0].tolist()) == ALL
    assert missed(pages, ALL) == []
    pages.close()


@pytest.mark.parametrize("victim", ["slab", "index"])
def test_a_device_that_takes_no_more(tmp_path: Path, victim: str) -> None:
    pages = opened(tmp_path / "d", slab_bytes=1 << 20)
    put(pages, [0, 1, 2])
    files = pages._files
    held = files.slabs._fds[0] if victim == "slab" else files.index._fd
    kept, full = os.dup(held), os.open("/dev/full", os.O_RDWR)
    os.dup2(full, held)
    assert put(pages, [3, 4, 5]) == [3, 4, 5]
    os.dup2(kept, held)
    assert pages.faults == {"full": 3}
    assert missed(pages, [0, 1, 2, 3]) == [3]
    pages.close()
    pages = opened(tmp_path / "d", slab_bytes=1 << 20)
    assert pages.stored()[0].tolist() == [0, 1, 2]
    pages.close()
    os.close(kept)
    os.close(full)


class Stall:
    """Reads or writes of some slots hang until released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.slots: set[int] = set()
        self.released = threading.Event()
        true: Callable[[disk_slabs.Slabs, int, NDArray[np.uint8]], int | None] = getattr(disk_slabs.Slabs, name)

        def hanging(slabs: disk_slabs.Slabs, slot: int, rows: NDArray[np.uint8]) -> int | None:
            if slot in self.slots:
                self.released.wait(60)
            return true(slabs, slot, rows)

        monkeypatch.setattr(disk_slabs.Slabs, name, hanging)


BIG = 200_000  # each page a slab, two threads with four pages each


def test_a_read_that_hangs_fails_alone_and_never_touches_its_caller_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stall = Stall(monkeypatch, "read")
    pages = opened(tmp_path / "d", page_bytes=BIG, io_threads=2, stall_timeout_s=0.2)
    put(pages, ALL)
    stall.slots = {3}
    keys, out = np.arange(100, 108), np.full((8, BIG), 77, np.uint8)
    started_s = time.monotonic()
    assert pages.read(np.array(ALL), keys, out).tolist() == [3]
    assert 0.2 <= time.monotonic() - started_s < 5
    assert pages.faults == {"stalled": 1}
    assert "the disk did not answer in time" in pages.problems()[0]
    stall.slots = set()
    for _ in range(3):  # its thread was replaced
        assert missed(pages, ALL) == []
    before = threading.active_count()
    stall.released.set()
    until_s = time.monotonic() + 10
    while threading.active_count() >= before and time.monotonic() < until_s:
        time.sleep(0.01)
    assert threading.active_count() == before - 1  # it came back, and left
    assert (out[3] == 77).all() and np.array_equal(out[4], payload([104], BIG)[0])
    pages.close()
    assert pages._files.slabs._fds == []


def test_a_write_that_hangs_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stall = Stall(monkeypatch, "write")
    pages = opened(tmp_path / "d", page_bytes=BIG, io_threads=2, stall_timeout_s=0.2)
    stall.slots = {2}
    assert put(pages, ALL) == [2, 3]
    stall.slots = set()
    assert pages.writable
    assert missed(pages, ALL) == [2, 3]
    assert put(pages, [2], 900) == missed(pages, [2], 900) == []
    stall.released.set()  # the old page lands on top of the new one
    until_s = time.monotonic() + 10
    while missed(pages, [2], 900) != [2] and time.monotonic() < until_s:
        time.sleep(0.01)
    assert missed(pages, [2], 900) == [2]
    assert pages.faults["checksum"] >= 1
    pages.close()


def test_a_disk_that_hangs_for_good_closes_the_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stall = Stall(monkeypatch, "read")
    pages = opened(tmp_path / "d", page_bytes=BIG, io_threads=2, stall_timeout_s=0.1)
    put(pages, ALL)
    stall.slots = set(ALL)
    before = threading.active_count()
    assert missed(pages, ALL) == ALL
    assert pages.readable  # two hang, two new ones serve
    assert missed(pages, ALL) == ALL
    assert threading.active_count() <= before + 2
    assert not pages.readable and not pages.writable
    assert sum("too many I/Os hang; it is closed for this run" in line for line in pages.problems()) == 1
    started_s = time.monotonic()
    assert missed(pages, ALL) == ALL and put(pages, ALL) == ALL
    pages.forget(np.array(ALL))
    assert pages.faults == {"stalled": 16, "closed": 16}
    pages.close()
    assert time.monotonic() - started_s < 5
    stall.released.set()


def test_a_bug_in_a_thread_is_raised_to_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = opened(tmp_path / "d")
    put(pages, ALL)
    monkeypatch.setattr(SlotIndex, "put", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        put(pages, ALL)
    pages.close()
