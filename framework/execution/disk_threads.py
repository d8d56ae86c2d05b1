"""Threads for blocking I/O that may hang: a caller waits for a job only as long as each of its I/Os moves."""

from __future__ import annotations

import mmap
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Buffer = NDArray[np.uint8]


class AbandonedError(Exception):
    """The I/O took too long: whoever asked for it has left, and nothing of theirs may be touched any more."""


def aligned_buffer(num_bytes: int) -> Buffer:
    """uint8 [num_bytes] that starts at a memory page, as direct I/O wants it."""
    return np.frombuffer(mmap.mmap(-1, max(num_bytes, 1)), np.uint8)[:num_bytes]


@dataclass(slots=True, eq=False)
class _Call:
    """One caller's jobs: how many are still open, and the caller who waits for the last."""

    left: int
    ended: threading.Condition


@dataclass(slots=True, eq=False)
class Job:
    """``work(job, buffer)`` on a thread that owns ``buffer``; every blocking system call goes inside ``with job:``.

    Only in there may the job be abandoned; leaving (or entering) raises ``AbandonedError`` then. So whatever ``work``
    does to its caller's memory outside is done while the caller still waits.
    """

    work: Callable[[Job, Buffer], None]
    error: BaseException | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _io_started_s: float | None = None
    _abandoned: bool = False
    _call: _Call | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._abandoned:
                raise AbandonedError
            self._io_started_s = time.monotonic()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._io_started_s = None
            if self._abandoned:
                raise AbandonedError

    def abandon_if_started_before(self, time_s: float) -> bool:
        """Abandon it if its present I/O began before ``time_s``; True if so."""
        with self._lock:
            if self._abandoned or self._io_started_s is None or self._io_started_s >= time_s:
                return False
            self._abandoned = True
            return True


class IoThreads:
    """``threads`` daemon threads that take urgent jobs first, then first come, first served.

    A thread whose I/O exceeds ``stall_timeout_s`` is written off and replaced; with more than ``threads`` of them hung
    at a time, ``dead`` is set and every job from then on ends undone.
    """

    def __init__(self, threads: int, buffer_bytes: int, stall_timeout_s: float) -> None:
        self.dead = False
        self._threads_wanted = threads
        self._buffer_bytes = buffer_bytes
        self._stall_timeout_s = stall_timeout_s
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._queues: tuple[deque[Job], deque[Job]] = (deque(), deque())
        self._live = 0  # threads that are not written off
        self._hung = 0
        self._stopping = False
        with self._lock:
            for _ in range(threads):
                self._spawn()

    def run(self, jobs: Sequence[Job], urgent: bool = False) -> None:
        """Run ``jobs`` and return when all have ended or were abandoned. An error of a job is raised here."""
        if not jobs:
            return
        with self._lock:
            if self.dead or self._stopping:
                return
            call = _Call(len(jobs), threading.Condition(self._lock))
            for job in jobs:
                job._call = call
            self._queues[0 if urgent else 1].extend(jobs)
            self._wake.notify(len(jobs))
            while call.left:
                call.ended.wait(min(1.0, self._stall_timeout_s / 4))
                if call.left:
                    self._write_off(jobs, call)
        for job in jobs:
            if job.error is not None:
                raise job.error

    def close(self) -> bool:
        """Let the jobs at hand end and stop; False if threads still hang in the system."""
        with self._lock:
            self._stopping = True
            self._wake.notify_all()
            return self._wake.wait_for(lambda: not self._live, self._stall_timeout_s) and not self._hung

    def _spawn(self) -> None:
        self._live += 1
        threading.Thread(target=self._serve, name="disk-io", daemon=True).start()

    def _serve(self) -> None:
        buffer = aligned_buffer(self._buffer_bytes)
        while (job := self._next()) is not None:
            try:
                job.work(job, buffer)
            except AbandonedError:  # its replacement is at work
                with self._lock:
                    self._hung -= 1
                return
            except Exception as error:  # noqa: BLE001  a bug: the caller's to raise
                job.error = error
            self._end(job)

    def _next(self) -> Job | None:
        with self._lock:
            while True:
                for queue in self._queues:
                    if queue:
                        return queue.popleft()
                if self._stopping:
                    self._live -= 1
                    self._wake.notify_all()
                    return None
                self._wake.wait()

    def _end(self, job: Job) -> None:
        with self._lock:
            self._settle(job)

    def _settle(self, job: Job) -> None:
        call = job._call
        assert call is not None
        call.left -= 1
        if not call.left:
            call.ended.notify()

    def _write_off(self, jobs: Sequence[Job], call: _Call) -> None:
        """Abandon what is overdue among ``jobs``; a fresh thread for each, or the end of the tier. The lock is held."""
        limit_s = time.monotonic() - self._stall_timeout_s
        for job in jobs:
            if job.abandon_if_started_before(limit_s):
                call.left -= 1
                self._live -= 1
                self._hung += 1
                if self._hung <= self._threads_wanted and not self.dead:
                    self._spawn()
                else:
                    self._die()

    def _die(self) -> None:
        self.dead = True
        for queue in self._queues:
            while queue:
                self._settle(queue.popleft())
