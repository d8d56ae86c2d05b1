"""The disk tier with nothing going wrong: what is written is read, by slot and key, by one caller and by many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvarena.framework.execution import disk_slabs
from kvarena.framework.execution.disk import DiskPages
from kvarena.framework.execution.disk_index import SlotEntries, SlotIndex

Longs = NDArray[np.int64]


def payload(keys: Longs, page_bytes: int) -> NDArray[np.uint8]:
    """The one right content of each key."""
    seeds = keys.astype(np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
    words = (seeds + np.arange(-(-page_bytes // 8), dtype=np.uint64)) * np.uint64(0xD1B54A32D192ED03)
    return np.ascontiguousarray((words ^ (words >> np.uint64(29))).view(np.uint8)[:, :page_bytes])


def put(pages: DiskPages, slots: list[int], keys: list[int]) -> Longs:
    at = np.array(keys, np.int64)
    return pages.write(np.array(slots, np.int32), at, at - 1, payload(at, pages.page_bytes))


def get(pages: DiskPages, slots: list[int], keys: list[int]) -> list[int]:
    """Indices that failed; what did not is compared, what did must be untouched."""
    at, out = np.array(keys, np.int64), np.full((len(keys), pages.page_bytes), 77, np.uint8)
    failed = pages.read(np.array(slots, np.int32), at, out)
    expected = payload(at, pages.page_bytes)
    expected[failed] = 77
    assert np.array_equal(out, expected)
    return failed.tolist()


@pytest.fixture(params=["direct", "buffered"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "buffered":
        monkeypatch.setattr(disk_slabs, "_takes_direct", lambda path: False)
    yield request.param


@pytest.mark.usefixtures("mode")
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_round_trip(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    num_pages = data.draw(st.integers(1, 24))
    page_bytes = data.draw(st.sampled_from([1, 7, 8, 4095, 4096, 5000, 16384, 150_000]))
    slab_bytes = data.draw(st.sampled_from([1, 3 * 8192, None]))
    folder = tmp_path_factory.mktemp("disk")
    options = (folder, num_pages, page_bytes, "a")

    def opened() -> DiskPages:
        return DiskPages.open(*options, persist=True, io_threads=3, slab_bytes=slab_bytes)

    pages, held = opened(), dict[int, int]()
    for _ in range(data.draw(st.integers(1, 5))):
        slots = data.draw(st.lists(st.integers(0, num_pages - 1), max_size=30))
        keys = data.draw(st.lists(st.integers(-(2**63), 2**63 - 2), min_size=len(slots), max_size=len(slots)))
        match data.draw(st.sampled_from(["write", "write", "forget", "reopen"])):
            case "write":
                assert not len(put(pages, slots, [key + 1 for key in keys]))
                for slot, key in zip(slots, keys, strict=True):
                    held.pop(slot, None)
                    held[slot] = key + 1
            case "forget":
                pages.forget(np.array(slots, np.int32))
                held = {slot: key for slot, key in held.items() if slot not in slots}
            case "reopen":
                pages.close()
                pages = opened()
                latest = {key: slot for slot, key in held.items()}
                held = {slot: key for slot, key in held.items() if latest[key] == slot}
        stored = list(zip(*(column.tolist() for column in pages.stored()), strict=True))
        assert stored == [(slot, key, key - 1) for slot, key in held.items()]
        assert get(pages, list(held), list(held.values())) == []
    pages.close()


def test_direct_io_is_used_where_the_file_system_allows(tmp_path: Path) -> None:
    pages = DiskPages.open(tmp_path / "d", 4, 100, "a", persist=True)
    try:
        fd = os.open(tmp_path / "d/slab-0000.bin", os.O_RDONLY | os.O_DIRECT)
    except OSError:
        assert not pages.direct
    else:
        os.close(fd)
        assert pages.direct
    pages.close()


def test_rows_pick_from_a_larger_pool(tmp_path: Path) -> None:
    pages = DiskPages.open(tmp_path / "d", 8, 5000, "a", persist=False)
    keys = np.arange(1, 9)
    pool = payload(keys, 5000)
    rows = np.array([6, 0, 3])
    assert not len(pages.write(np.array([1, 5, 2]), keys[rows], keys[rows] - 1, pool, rows))
    out = np.zeros((9, 5000), np.uint8)
    assert not len(pages.read(np.array([5, 2, 1]), keys[[0, 3, 6]], out, np.array([8, 4, 2])))
    assert np.array_equal(out[[8, 4, 2]], pool[[0, 3, 6]])
    assert not out[[0, 1, 3, 5, 6, 7]].any()
    pages.close()


def test_of_a_slot_that_comes_twice_the_last_stays(tmp_path: Path) -> None:
    pages = DiskPages.open(tmp_path / "d", 8, 300_000, "a", persist=False)
    assert not len(put(pages, [3, 1, 3, 2, 3], [10, 11, 12, 13, 14]))
    assert get(pages, [3, 1, 2], [14, 11, 13]) == []
    assert get(pages, [3, 3], [10, 12]) == [0, 1]
    pages.close()


def test_stored_pages_come_in_the_order_of_writing_and_once(tmp_path: Path) -> None:
    pages = DiskPages.open(tmp_path / "d", 8, 100, "a", persist=True)
    for slot, key in ((5, 50), (2, 20), (7, 70), (0, 20)):
        put(pages, [slot], [key])
    pages.close()
    pages = DiskPages.open(tmp_path / "d", 8, 100, "a", persist=True)
    slots, keys, parents = pages.stored()
    assert (slots.dtype, keys.dtype, parents.dtype) == (np.int32, np.int64, np.int64)
    assert (slots.tolist(), keys.tolist(), parents.tolist()) == ([5, 7, 0], [50, 70, 20], [49, 69, 19])
    put(pages, [5], [51])  # later than what an earlier run wrote
    pages.forget(np.array([0]))  # the older of the two is not found again
    pages.close()
    pages = DiskPages.open(tmp_path / "d", 8, 100, "a", persist=True)
    assert pages.stored()[1].tolist() == [70, 51]
    pages.close()


def test_neighbours_share_an_io_within_a_slab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = DiskPages.open(tmp_path / "d", 16, 4096, "a", persist=False, slab_bytes=8 * 4096)
    seen: list[tuple[int, int]] = []
    read = disk_slabs.Slabs.read

    def spy(slabs: disk_slabs.Slabs, slot: int, rows: NDArray[np.uint8]) -> int:
        seen.append((slot, len(rows)))
        return read(slabs, slot, rows)

    monkeypatch.setattr(disk_slabs.Slabs, "read", spy)
    slots = [9, 2, 3, 8, 4, 7, 14]
    put(pages, slots, [slot + 100 for slot in slots])
    assert get(pages, slots, [slot + 100 for slot in slots]) == []
    assert sorted(seen) == [(2, 3), (7, 1), (8, 2), (14, 1)]
    pages.close()


def test_many_callers_at_a_time_never_get_wrong_data(tmp_path: Path) -> None:
    pages = DiskPages.open(tmp_path / "d", 40, 9000, "a", persist=True)

    def work(seed: int) -> None:
        """Slots of its own, where nothing may fail, and slots that all fight for, where only a miss is allowed."""
        rng, mine = np.random.default_rng(seed), np.arange(seed * 8, seed * 8 + 8)
        for _ in range(25):
            keys = rng.integers(1, 2**62, 12)
            slots = np.concatenate([mine, rng.choice(np.arange(32, 40), 4, replace=False)])
            assert not len(put(pages, slots.tolist(), keys.tolist()))
            order = rng.permutation(12)
            failed = get(pages, slots[order].tolist(), keys[order].tolist())
            assert all(slots[order[i]] >= 32 for i in failed)

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(work, range(4)))
    assert set(pages.faults) <= {"key", "checksum"}
    pages.close()


def test_files_that_do_not_persist_have_no_names_and_the_folder_goes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    pages = DiskPages.open(tmp_path / "sub/d", 8, 5000, "a", persist=False)
    assert sorted(path.name for path in (tmp_path / "sub/d").iterdir()) == ["lock", "meta.json"]
    put(pages, [1, 2], [1, 2])
    assert get(pages, [1, 2], [1, 2]) == []
    pages.close()
    pages.close()
    assert not (tmp_path / "sub/d").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    DiskPages.open(mine, 8, 5000, "a", persist=False).close()
    assert list(mine.iterdir()) == []


def test_blocks_are_reserved_from_the_start(tmp_path: Path) -> None:
    pages = DiskPages.open(tmp_path / "d", 64, 16384, "a", persist=True, slab_bytes=1 << 19)
    slabs = sorted((tmp_path / "d").glob("slab-*"))
    assert [slab.stat().st_size for slab in slabs] == [1 << 19, 1 << 19]
    assert all(slab.stat().st_blocks * 512 >= 1 << 19 for slab in slabs)
    pages.close()


def test_measure_gives_costs_and_leaves_nothing(tmp_path: Path) -> None:
    pages = DiskPages.open(tmp_path / "d", 8, 16384, "a", persist=True)
    put(pages, list(range(8)), list(range(1, 9)))
    read_bytes_per_s, write_bytes_per_s, latency_s = pages.measure()
    assert 1e5 < read_bytes_per_s < 1e12 and 1e5 < write_bytes_per_s < 1e12 and 0 <= latency_s < 5
    assert not (tmp_path / "d/probe").exists()
    assert get(pages, list(range(8)), list(range(1, 9))) == []
    assert not pages.faults
    pages.close()


def test_after_close_everything_fails_and_nothing_raises(tmp_path: Path) -> None:
    pages = DiskPages.open(tmp_path / "d", 8, 100, "a", persist=True)
    put(pages, [1], [1])
    pages.close()
    assert put(pages, [2], [2]).tolist() == [0]
    assert get(pages, [1], [1]) == [0]
    assert pages.faults == {"closed": 2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_pages": 0}, "num_pages=0 must be >= 1"),
        ({"page_bytes": -1}, "page_bytes=-1 must be >= 1"),
        ({"io_threads": 0}, "io_threads=0 must be >= 1"),
        ({"stall_timeout_s": 0.0}, "stall_timeout_s=0.0 must be > 0"),
    ],
)
def test_sizes_out_of_range(tmp_path: Path, change: dict[str, float], said: str) -> None:
    options = {"num_pages": 4, "page_bytes": 10, "page_format": "a", "persist": True} | change
    with pytest.raises(ValueError, match=said):
        DiskPages.open(tmp_path / "d", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("slots", "keys", "shape", "said"),
    [
        ([4], [1], (1, 10), r"slots 4 .. 4 must be in \[0, 4\)"),
        ([-1], [1], (1, 10), r"slots -1 .. -1 must be in \[0, 4\)"),
        ([1, 2], [1], (2, 10), "must be alike"),
        ([1], [1], (1, 11), r"expected uint8 \[pages, 10\]"),
        ([1, 2], [1, 2], (1, 10), r"rows 0 .. 1 must be in \[0, 1\)"),
    ],
)
def test_wrong_arrays(tmp_path: Path, slots: list[int], keys: list[int], shape: tuple[int, int], said: str) -> None:
    pages = DiskPages.open(tmp_path / "d", 4, 10, "a", persist=False)
    at, data = np.array(keys, np.int64), np.zeros(shape, np.uint8)
    with pytest.raises(ValueError, match=said):
        pages.read(np.array(slots), at, data)
    with pytest.raises(ValueError, match=said):
        pages.write(np.array(slots), at, at, data)
    pages.close()


def test_an_entry_counts_only_whole_and_in_its_place(tmp_path: Path) -> None:
    path, three = tmp_path / "index.bin", np.arange(3)
    path.write_bytes(bytes(64 * 4))
    index = SlotIndex(4, path)
    index.store(SlotEntries(three, three + 10, three + 9, three.astype(np.uint64), index.number(3)))
    index.close()
    good = path.read_bytes()
    for at in range(64, 128):  # every byte of the second entry
        torn = bytearray(good)
        torn[at] ^= 0x10
        path.write_bytes(torn)
        index = SlotIndex(4, path)
        assert index.held()[0].tolist() == [0, 2]
        index.close()
    path.write_bytes(good[64:] + good[:64])
    index = SlotIndex(4, path)
    assert index.held()[0].tolist() == []
    index.close()
