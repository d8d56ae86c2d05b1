"""Preallocated files of page slots, read and written past the page cache where the file system allows."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .disk_threads import Buffer, aligned_buffer

ALIGNMENT = 4096  # of offsets, lengths and memory: what direct I/O needs at most on common devices
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def is_full(error: OSError) -> bool:
    """True if ``error`` says that there is no room: disk, quota or file size limit."""
    return error.errno in _NO_SPACE


def preallocate(path: Path, num_bytes: int) -> None:
    """Make ``path`` ``num_bytes`` long with its blocks reserved; only long, where the file system cannot reserve.

    ``posix_fallocate`` would write every block there, so the system call is made directly.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _reserve(fd, num_bytes):
            os.ftruncate(fd, num_bytes)
    finally:
        os.close(fd)


def _reserve(fd: int, num_bytes: int) -> bool:
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is None:
        return False
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
    if fallocate(fd, 0, 0, num_bytes) == 0:
        return True
    error = ctypes.get_errno()
    if error in _UNSUPPORTED:
        return False
    raise OSError(error, os.strerror(error))


def reserve_files(files: Sequence[tuple[Path, int]]) -> list[int | None]:
    """Bring each (path, bytes) to its size; how long each was before, None where there was none.

    Raises
    ------
    ValueError
        If the disk has not enough room, saying what is needed and what is free; files made here are removed again.
    """
    before = [path.stat().st_size if path.exists() else None for path, _ in files]
    needed = sum(max(0, size - (old or 0)) for (_, size), old in zip(files, before, strict=True))
    if not needed:
        return before
    folder = files[0][0].parent
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    try:
        if free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for (path, size), old in zip(files, before, strict=True):
            if old is None or old < size:
                preallocate(path, size)
    except OSError as error:
        for (path, _), old in zip(files, before, strict=True):
            if old is None:
                path.unlink(missing_ok=True)
        raise ValueError(
            f"disk folder {folder} has no room for the tier: {needed} bytes needed, {free} free ({error.strerror})"
        ) from error
    return before


class Slabs:
    """Open slab files of ``slab_slots`` slots of ``stride_bytes`` each. ``direct``: the page cache is bypassed."""

    def __init__(self, paths: Sequence[Path], slab_slots: int, stride_bytes: int) -> None:
        self.direct = _takes_direct(paths[0])
        self._slab_slots = slab_slots
        self._stride_bytes = stride_bytes
        flags = os.O_RDWR | (os.O_DIRECT if self.direct else 0)
        self._fds: list[int] = []
        try:
            for path in paths:
                self._fds.append(os.open(path, flags))
        except BaseException:
            self.close()
            raise

    def spans(self, slots: NDArray[np.int64]) -> list[tuple[int, int]]:
        """(first, end) positions of what one I/O can do in ``slots`` [n, ascending]: neighbours in one slab."""
        cuts = np.flatnonzero((np.diff(slots) != 1) | (slots[1:] % self._slab_slots == 0)) + 1
        bounds = [0, *cuts.tolist(), len(slots)]
        return list(pairwise(bounds))

    def read(self, slot: int, rows: Buffer) -> int:
        """Fill ``rows`` [n, stride] from ``slot`` on; the bytes read, fewer where the file ends. ``OSError``."""
        fd, at, view = self._place(slot, rows)
        done = 0
        while done < len(view):
            got = os.preadv(fd, [view[done:]], at + done)
            done += got
            if not got or done % ALIGNMENT:
                break
        return done

    def write(self, slot: int, rows: Buffer) -> None:
        """Write ``rows`` [n, stride] from ``slot`` on. ``OSError``."""
        fd, at, view = self._place(slot, rows)
        done = 0
        while done < len(view):
            put = os.pwritev(fd, [view[done:]], at + done)
            if not put:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done += put

    def sync(self) -> None:
        """Have the device keep all that was written."""
        for fd in self._fds:
            os.fdatasync(fd)

    def close(self) -> None:
        """Close the files."""
        while self._fds:
            os.close(self._fds.pop())

    def _place(self, slot: int, rows: Buffer) -> tuple[int, int, memoryview]:
        slab, inside = divmod(slot, self._slab_slots)
        return self._fds[slab], inside * self._stride_bytes, rows.reshape(-1).data


def _takes_direct(path: Path) -> bool:
    """Try it: some file systems refuse at open, some at the first read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return False
    try:
        os.preadv(fd, [aligned_buffer(ALIGNMENT).data], 0)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
