"""The disk tier: pages in real files, many I/Os in flight, checked when read; a page that is not right is a miss."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .disk_faults import FaultLog, Outcome
from .disk_files import Longs, PageBatch, PageFiles, open_files, stride_bytes
from .disk_folder import DiskFolder, FolderMeta, claim_folder
from .disk_threads import Buffer, IoThreads, Job

Ints = NDArray[np.integer]

_IO_BYTES = 1 << 20  # the largest I/O, and the work of one job
_LEAST_JOB_BYTES = 128 << 10  # less is not worth a thread's waking
_PROBE_BYTES = 8 << 20
_SLAB_BYTES = 1 << 30
_MAX_SLABS = 256  # they are all open at a time


class DiskPages:
    """``num_pages`` slots of ``page_bytes`` bytes in files of one folder; made by ``open``.

    Calls may come from several threads; each blocks its caller only. No disk can make them raise: what fails is named
    in the result and counted, and what is read is what was written under that key, or a failure.
    """

    def __init__(self, claim: DiskFolder, files: PageFiles, io_threads: int, stall_timeout_s: float) -> None:
        self.folder = claim.path
        self.num_pages, self.page_bytes = claim.meta.num_pages, claim.meta.page_bytes
        self._claim, self._files, self._log = claim, files, files.log
        self._io_threads = io_threads
        self._job_pages = max(1, _IO_BYTES // files.stride)
        self._threads = IoThreads(io_threads, self._job_pages * files.stride, stall_timeout_s)
        self._closed = False

    @staticmethod
    def open(
        folder: Path,
        num_pages: int,
        page_bytes: int,
        page_format: str,
        *,
        persist: bool,
        io_threads: int = 4,
        stall_timeout_s: float = 30.0,
        slab_bytes: int | None = None,
    ) -> DiskPages:
        """Make or find the tier in ``folder``.

        Parameters
        ----------
        page_format: model, dtype, page size and whatever else makes pages of another run useless to this one.
        persist: keep the pages for a later run. Otherwise the files have no names from the start, so that they are gone
            whenever the process is, and the folder is cleared at the end.
        io_threads: I/Os in flight.
        stall_timeout_s: an I/O that takes longer fails its pages.
        slab_bytes: size of a file; None: 1 GiB, or more for a tier of hundreds.

        Raises
        ------
        ValueError
            For arguments out of range, a folder that is in use, foreign or of other pages, or too little room.
        """
        _check_sizes(num_pages, page_bytes, io_threads, stall_timeout_s)
        stride = stride_bytes(page_bytes)
        slab_bytes = slab_bytes or max(_SLAB_BYTES, -(-num_pages * stride // _MAX_SLABS))
        slab_pages = min(num_pages, max(1, slab_bytes // stride))
        claim = claim_folder(folder, FolderMeta(page_format, page_bytes, num_pages, slab_pages, persist))
        try:
            files = open_files(claim, FaultLog(folder))
        except OSError as error:
            claim.release(clear=claim.fresh)
            raise ValueError(f"disk folder {folder} cannot be used: {error.strerror or error}") from error
        except ValueError:
            claim.release(clear=claim.fresh)
            raise
        return DiskPages(claim, files, io_threads, stall_timeout_s)

    @property
    def direct(self) -> bool:
        """The page cache is bypassed."""
        return self._files.slabs.direct

    @property
    def writable(self) -> bool:
        """False once a write failed, too many I/Os hung, or it was closed: every write fails at once."""
        return self._files.writable and self.readable

    @property
    def readable(self) -> bool:
        """False once too many I/Os hung, or it was closed: every read fails at once."""
        return not (self._closed or self._threads.dead)

    @property
    def faults(self) -> dict[str, int]:
        """Pages that failed so far, by kind; see ``Outcome``."""
        return dict(self._log.counts)

    def problems(self) -> list[str]:
        """Warnings since the last call, one line each; a kind that goes on is named now and then."""
        return self._log.take()

    def stored(self) -> tuple[NDArray[np.int32], Longs, Longs]:
        """Slots (int32), keys and parents (int64) of the pages that are said to be there, the longest written first.

        No key comes twice after ``open``. The payloads are verified when they are read.
        """
        slots, keys, parents = self._files.index.held()
        return slots.astype(np.int32), keys, parents

    def write(self, slots: Ints, keys: Longs, parents: Longs, data: Buffer, rows: Ints | None = None) -> Longs:
        """Put pages into ``slots`` [n]; where one comes twice, the last stays.

        Parameters
        ----------
        keys, parents: int64 [n].
        data: uint8 [n, page_bytes]; with ``rows`` [n], page i is row ``rows[i]`` of it. Not to be changed until this
            returns.

        Returns
        -------
        int64, ascending: indices of the pages that were not written; their slots hold nothing.
        """
        batch = self._batch(slots, keys, data, rows, self.writable)
        if parents.shape != batch.slots.shape:
            raise ValueError(f"parents {parents.shape} and slots {batch.slots.shape} must be alike")
        batch.parents, batch.sequences = np.asarray(parents, np.int64), self._files.index.number(len(batch.slots))
        self._files.index.drop(batch.slots)
        if self.writable:
            size = len(batch.slots)
            last = size - 1 - np.unique(batch.slots[::-1], return_index=True)[1]  # by ascending slots
            batch.outcomes[np.setdiff1d(np.arange(size), last)] = Outcome.DONE  # it was there, for a moment
            self._run(partial(self._files.write, batch), last)
        return self._log.settle(batch.outcomes)

    def read(self, slots: Ints, keys: Longs, out: Buffer, rows: Ints | None = None) -> Longs:
        """Fetch the pages ``keys`` (int64 [n]) from ``slots`` [n] into ``out``.

        Parameters
        ----------
        out: uint8 [n, page_bytes]; with ``rows`` [n], page i goes to row ``rows[i]`` of it.

        Returns
        -------
        int64, ascending: indices of the pages that could not be had; their rows are as they were.
        """
        batch = self._batch(slots, keys, out, rows, self.readable)
        if self.readable:
            held, batch.digests = self._files.index.look_up(batch.slots, batch.keys)
            batch.outcomes[~held] = Outcome.KEY
            wanted = np.flatnonzero(held)
            wanted = wanted[np.argsort(batch.slots[wanted], kind="stable")]
            self._run(partial(self._files.read, batch), wanted, urgent=True)
        return self._log.settle(batch.outcomes)

    def forget(self, slots: Ints) -> None:
        """Nothing is in ``slots`` any more, for a later run neither."""
        at = np.unique(slots).astype(np.int64)
        self._check_range("slot", at, self.num_pages)
        self._files.index.drop(at)
        if self._claim.meta.persist and self.writable and len(at):
            self._threads.run([Job(partial(self._files.erase, at))])
            self._note_death()

    def measure(self) -> tuple[float, float, float]:
        """Bytes per second of reading and of writing, and seconds that one page alone takes beyond its bytes.

        A small tier of its own beside this one is written and read, with checksums, as this one would be.

        Raises
        ------
        ValueError
            If there is no room for it.
        """
        num_pages = max(2, min(self.num_pages, _PROBE_BYTES // self._files.stride))
        options = (num_pages, self.page_bytes, self._claim.meta.page_format)
        probe = DiskPages.open(self.folder / "probe", *options, persist=False, io_threads=self._io_threads)
        try:
            return _probe(probe)
        finally:
            probe.close()

    def close(self) -> None:
        """Finish, make what persists durable, remove what does not. Idempotent."""
        if self._closed:
            return
        if self._claim.meta.persist:
            self._threads.run([Job(self._files.sync)])
        self._closed = True
        if self._threads.close():  # else a hung thread may still use the files: they stay open
            self._files.close()
        self._claim.release(clear=not self._claim.meta.persist)

    def _batch(self, slots: Ints, keys: Longs, data: Buffer, rows: Ints | None, alive: bool) -> PageBatch:
        at = np.asarray(slots, np.int64)
        where = np.arange(len(at)) if rows is None else np.asarray(rows, np.int64)
        if at.ndim != 1 or keys.shape != at.shape or where.shape != at.shape:
            raise ValueError(f"slots {at.shape}, keys {keys.shape}, rows {where.shape} must be alike, in one dimension")
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != self.page_bytes:
            raise ValueError(f"data is {data.dtype} {data.shape}; expected uint8 [pages, {self.page_bytes}]")
        self._check_range("slot", at, self.num_pages)
        self._check_range("row", where, len(data))
        outcomes = np.full(len(at), Outcome.STALLED if alive else Outcome.CLOSED, np.int8)
        return PageBatch(at, np.asarray(keys, np.int64), where, data, outcomes)

    @staticmethod
    def _check_range(name: str, values: Longs, end: int) -> None:
        if len(values) and not (values.min() >= 0 and values.max() < end):
            raise ValueError(f"{name}s {values.min()} .. {values.max()} must be in [0, {end})")

    def _run(self, work: Callable[[Longs, Job, Buffer], None], order: Longs, urgent: bool = False) -> None:
        """Share ``order`` out among the threads: in pieces for all of them, none too small or larger than a buffer."""
        pages = -(-len(order) // self._io_threads)
        pages = min(self._job_pages, max(pages, _LEAST_JOB_BYTES // self._files.stride, 1))
        chunks = [order[at : at + pages] for at in range(0, len(order), pages)]
        self._threads.run([Job(partial(work, chunk)) for chunk in chunks], urgent)
        self._note_death()

    def _note_death(self) -> None:
        if self._threads.dead and self._files.writable:
            self._files.writable = False
            self._log.say("too many I/Os hang; it is closed for this run")


def _check_sizes(num_pages: int, page_bytes: int, io_threads: int, stall_timeout_s: float) -> None:
    for name, value in (("num_pages", num_pages), ("page_bytes", page_bytes), ("io_threads", io_threads)):
        if value < 1:
            raise ValueError(f"{name}={value!r} must be >= 1")
    if not stall_timeout_s > 0:
        raise ValueError(f"stall_timeout_s={stall_timeout_s!r} must be > 0")


def _probe(pages: DiskPages) -> tuple[float, float, float]:
    slots = np.arange(pages.num_pages)
    keys = slots + 1
    data = np.random.default_rng(0).integers(0, 256, (len(slots), pages.page_bytes), np.uint8)

    def timed(read: bool, count: int) -> float:
        started_s = time.perf_counter()
        if read:
            pages.read(slots[:count], keys[:count], data)
        else:
            pages.write(slots[:count], keys[:count], keys[:count] - 1, data)
        return max(time.perf_counter() - started_s, 1e-9)

    write_s, read_s = timed(False, len(slots)), timed(True, len(slots))
    alone_s = min(timed(True, 1) for _ in range(5))
    read_bytes_per_s = data.nbytes / read_s
    return read_bytes_per_s, data.nbytes / write_s, max(0.0, alone_s - pages.page_bytes / read_bytes_per_s)
