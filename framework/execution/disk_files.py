"""The open files of a disk tier, and what a thread does with its share of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .disk_faults import FaultLog, Outcome
from .disk_folder import DiskFolder
from .disk_index import ENTRY_BYTES, SlotEntries, SlotIndex, page_digests
from .disk_slabs import ALIGNMENT, Slabs, is_full, reserve_files
from .disk_threads import Buffer, Job

Longs = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class PageBatch:
    """Pages to write or read: page i belongs in ``slots[i]`` and in row ``rows[i]`` of ``data``.

    Attributes
    ----------
    slots, keys, rows: int64 [n].
    data: uint8 [any, page_bytes].
    outcomes: an ``Outcome`` each, int8 [n].
    parents, sequences: int64 and uint64 [n]; only to write.
    digests: uint64 [n], what to expect; only to read.
    """

    slots: Longs
    keys: Longs
    rows: Longs
    data: Buffer
    outcomes: NDArray[np.int8]
    parents: Longs = field(default_factory=lambda: np.empty(0, np.int64))
    sequences: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    digests: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))


@dataclass(slots=True, eq=False)
class PageFiles:
    """Slabs and index together. ``writable``: False once a write failed."""

    slabs: Slabs
    index: SlotIndex
    log: FaultLog
    page_bytes: int
    writable: bool = True

    @property
    def stride(self) -> int:
        """Bytes from slot to slot."""
        return stride_bytes(self.page_bytes)

    def write(self, batch: PageBatch, chunk: Longs, job: Job, buffer: Buffer) -> None:
        """Write pages ``chunk`` of ``batch``, in ascending order of distinct slots: payloads first, then entries."""
        staged, slots = buffer.reshape(-1, self.stride), batch.slots[chunk]
        for first, end in self.slabs.spans(slots):
            if not self.writable:
                batch.outcomes[chunk[first:]] = Outcome.CLOSED
                return
            pages = chunk[first:end]
            for row, page in enumerate(batch.rows[pages].tolist()):
                staged[row, : self.page_bytes] = batch.data[page]
            digests = page_digests(batch.keys[pages], staged[: len(pages)], self.page_bytes)
            what = (batch.keys[pages], batch.parents[pages], digests, batch.sequences[pages])
            entries = SlotEntries(slots[first:end], *what)
            try:
                with job:
                    self.slabs.write(int(slots[first]), staged[: len(pages)])
                    self.index.store(entries)
            except OSError as error:
                batch.outcomes[pages] = self.close_writing(error)
            else:
                self.index.put(entries)
                batch.outcomes[pages] = Outcome.DONE

    def read(self, batch: PageBatch, chunk: Longs, job: Job, buffer: Buffer) -> None:
        """Read pages ``chunk`` of ``batch``, in ascending order of slots; only what proves right reaches ``data``.

        The detour by ``buffer`` is needed: a hung read may come to life long after its caller has left.
        """
        staged, slots = buffer.reshape(-1, self.stride), batch.slots[chunk]
        for first, end in self.slabs.spans(slots):
            pages = chunk[first:end]
            try:
                with job:
                    got = self.slabs.read(int(slots[first]), staged[: len(pages)])
            except OSError as error:
                self.log.explain(Outcome.IO, error.strerror or str(error))
                batch.outcomes[pages] = Outcome.IO
            else:
                self._deliver(batch, pages, staged[: len(pages)], got)

    def _deliver(self, batch: PageBatch, pages: Longs, staged: Buffer, got_bytes: int) -> None:
        ends = np.arange(len(pages)) * self.stride + self.page_bytes
        right = page_digests(batch.keys[pages], staged, self.page_bytes) == batch.digests[pages]
        outcomes = np.where(right, Outcome.DONE, Outcome.CHECKSUM)
        outcomes[ends > got_bytes] = Outcome.SHORT
        for row in np.flatnonzero(outcomes == Outcome.DONE).tolist():
            batch.data[batch.rows[pages[row]]] = staged[row, : self.page_bytes]
        batch.outcomes[pages] = outcomes

    def erase(self, slots: Longs, job: Job, buffer: Buffer) -> None:
        """Write that nothing is in ``slots``, ascending."""
        try:
            for first, end in self.slabs.spans(slots):
                with job:
                    self.index.erase(int(slots[first]), end - first)
        except OSError as error:
            self.close_writing(error)

    def sync(self, job: Job, buffer: Buffer) -> None:
        """Have the device keep everything."""
        try:
            with job:
                self.slabs.sync()
                self.index.sync()
        except OSError as error:
            self.log.say(f"{error.strerror or error}; what was stored may be lost")

    def close_writing(self, error: OSError) -> Outcome:
        """A write failed by ``error``: no more of them; what that makes of its pages."""
        if self.writable:
            self.writable = False
            self.log.say(f"{error.strerror or error}; it takes no more pages, reading goes on")
        return Outcome.FULL if is_full(error) else Outcome.IO

    def close(self) -> None:
        """Close the files."""
        self.slabs.close()
        self.index.close()


def stride_bytes(page_bytes: int) -> int:
    """Bytes that a page's slot takes on disk."""
    return -(-page_bytes // ALIGNMENT) * ALIGNMENT


def open_files(claim: DiskFolder, log: FaultLog) -> PageFiles:
    """The files of ``claim`` at their full size; what was in missing or short ones is dropped from the index.

    Raises
    ------
    ValueError
        If there is too little room. ``OSError`` for what else may fail.
    """
    meta = claim.meta
    stride, step = stride_bytes(meta.page_bytes), meta.slab_pages
    firsts = range(0, meta.num_pages, step)
    slabs = [(claim.slab(i), min(step, meta.num_pages - first) * stride) for i, first in enumerate(firsts)]
    files = [(claim.index, meta.num_pages * ENTRY_BYTES)] if meta.persist else []
    before = reserve_files([*files, *slabs])
    index = SlotIndex(meta.num_pages, claim.index if meta.persist else None)
    for first, old, (_, size) in zip(firsts, before[len(files) :], slabs, strict=True):
        if (old or 0) < size and (lost := index.lose(first + (old or 0) // stride, first + size // stride)):
            log.add(Outcome.MISSING if old is None else Outcome.SHORT, lost)
    if meta.persist and before[0] is None and any(old is not None for old in before[1:]):
        log.say("its index is missing; what was stored is lost")
    opened = Slabs([path for path, _ in slabs], step, stride)
    if not meta.persist:
        for path, _ in slabs:
            path.unlink()
    return PageFiles(opened, index, log, meta.page_bytes)
