"""Which page each slot holds: arrays in memory and, for a tier that persists, a file of checked 64-byte entries."""

from __future__ import annotations

import os
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Longs = NDArray[np.int64]
Words = NDArray[np.uint64]

_MAGIC = 0x4B56504147453031
_ENTRY = np.dtype(
    [
        ("magic", "<u8"),
        ("slot", "<u8"),
        ("key", "<i8"),
        ("parent", "<i8"),
        ("digest", "<u8"),
        ("sequence", "<u8"),
        ("spare", "<u8"),
        ("check", "<u8"),
    ]
)
ENTRY_BYTES = _ENTRY.itemsize


def page_digests(keys: Longs, staged: NDArray[np.uint8], page_bytes: int) -> Words:
    """64 bits [n] over the first ``page_bytes`` of each row of ``staged`` (uint8 [n, a multiple of 8]) and its key.

    A CRC-32 below, a folded sum of 64-bit words above: against torn, stale and decayed data, not against an adversary.
    Both run near memory speed without the GIL; a cryptographic hash would be several times slower than the disk.
    """
    totals = staged[:, : page_bytes & ~7].view(np.uint64).sum(axis=1, dtype=np.uint64)
    totals += keys.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    folded = (totals ^ (totals >> np.uint64(32))) << np.uint64(32)
    data, stride = staged.reshape(-1).data, staged.shape[1]
    seeds = (keys & 0xFFFFFFFF).tolist()
    codes = [zlib.crc32(data[i * stride : i * stride + page_bytes], seed) for i, seed in enumerate(seeds)]
    digests: Words = folded | np.array(codes, np.uint64)
    return digests


def _checks(words: Words) -> Words:
    """A checksum [n] of each row of ``words`` [n, 7]."""
    mixed = np.full(len(words), 0x9E3779B97F4A7C15, np.uint64)
    for column in words.T:
        mixed = (mixed ^ column) * np.uint64(0xFF51AFD7ED558CCD)
        mixed ^= mixed >> np.uint64(32)
    return mixed


@dataclass(frozen=True, slots=True)
class SlotEntries:
    """What is to be said about ``slots`` [n]; ``sequences`` grow with every page written."""

    slots: Longs
    keys: Longs
    parents: Longs
    digests: Words
    sequences: Words

    def packed(self) -> NDArray[np.void]:
        """As the file holds them."""
        entries = np.zeros(len(self.slots), _ENTRY)
        entries["magic"], entries["slot"] = _MAGIC, self.slots
        entries["key"], entries["parent"] = self.keys, self.parents
        entries["digest"], entries["sequence"] = self.digests, self.sequences
        entries["check"] = _checks(entries.view(np.uint64).reshape(-1, 8)[:, :7])
        return entries


class SlotIndex:
    """What ``num_slots`` slots hold; thread-safe.

    A payload is written before its entry, but nothing relies on the order in which they reach the device: an entry
    whose checksum is wrong is none, and one that does not fit its payload is found out when the page is read.
    """

    def __init__(self, num_slots: int, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._keys, self._parents = np.zeros(num_slots, np.int64), np.zeros(num_slots, np.int64)
        self._digests, self._sequences = np.zeros(num_slots, np.uint64), np.zeros(num_slots, np.uint64)
        self._next = 1  # sequence 0: nothing there
        self._fd = -1 if path is None else os.open(path, os.O_RDWR)
        if path is not None:
            self._load(np.fromfile(path, _ENTRY, num_slots))

    def held(self) -> tuple[Longs, Longs, Longs]:
        """Slots, keys and parents of all pages, the longest written first."""
        with self._lock:
            slots = np.flatnonzero(self._sequences)
            slots = slots[np.argsort(self._sequences[slots], kind="stable")]
            return slots, self._keys[slots], self._parents[slots]

    def look_up(self, slots: Longs, keys: Longs) -> tuple[NDArray[np.bool_], Words]:
        """Whether each slot holds its key, and the digest to expect."""
        with self._lock:
            return (self._sequences[slots] > 0) & (self._keys[slots] == keys), self._digests[slots]

    def drop(self, slots: Longs) -> None:
        """Nothing is in ``slots`` from now on, as far as this run goes; the file keeps what it says."""
        with self._lock:
            self._sequences[slots] = 0

    def lose(self, first: int, end: int) -> int:
        """The payload of slots ``first`` .. ``end`` is gone: drop and erase them; how many held a page. ``OSError``."""
        pages = int(np.count_nonzero(self._sequences[first:end]))
        if pages:
            self.drop(np.arange(first, end))
            self.erase(first, end - first)
        return pages

    def number(self, pages: int) -> Words:
        """Sequence numbers for ``pages`` pages that are about to be written."""
        with self._lock:
            self._next += pages
            return np.arange(self._next - pages, self._next, dtype=np.uint64)

    def put(self, entries: SlotEntries) -> None:
        """``entries`` hold from now on, as far as this run goes."""
        with self._lock:
            at = entries.slots
            self._keys[at], self._parents[at] = entries.keys, entries.parents
            self._digests[at], self._sequences[at] = entries.digests, entries.sequences

    def store(self, entries: SlotEntries) -> None:
        """Write ``entries``, of consecutive slots, to the file. ``OSError``."""
        if len(entries.slots):
            self._write(int(entries.slots[0]), entries.packed())

    def erase(self, first: int, count: int) -> None:
        """Write that nothing is in the ``count`` slots from ``first`` on. ``OSError``."""
        self._write(first, np.zeros(count, _ENTRY))

    def sync(self) -> None:
        """Have the device keep the file."""
        if self._fd >= 0:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, first: int, packed: NDArray[np.void]) -> None:
        if self._fd < 0:
            return
        view, at, done = packed.view(np.uint8).data, first * ENTRY_BYTES, 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done:], at + done)

    def _load(self, found: NDArray[np.void]) -> None:
        """Take what is whole and in its place; of several entries of one key the latest, and erase the others."""
        words = found.view(np.uint64).reshape(-1, 8)
        whole = (found["magic"] == _MAGIC) & (found["slot"] == np.arange(len(found))) & (found["sequence"] > 0)
        good = np.flatnonzero(whole & (found["check"] == _checks(words[:, :7])))
        latest = good[np.argsort(found["sequence"][good], kind="stable")[::-1]]
        slots = latest[np.unique(found["key"][latest], return_index=True)[1]]
        for slot in np.setdiff1d(good, slots).tolist():
            self.erase(slot, 1)
        for name, column in (("key", self._keys), ("parent", self._parents), ("digest", self._digests)):
            column[slots] = found[name][slots]
        self._sequences[slots] = found["sequence"][slots]
        self._next = int(self._sequences.max(initial=0)) + 1
