"""Locks that die with who holds them, so that none is ever stale."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

UNKNOWN_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # a file system without locks


class Lock:
    """An advisory lock on ``path`` (``flock``): the kernel releases it when its holder ends, however it ends.

    Where the file system knows no locks, :meth:`take` succeeds: nothing is locked then, and nothing breaks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def take(self, wait: bool = False) -> bool:
        """Take the lock, or return False if another holds it; with ``wait``, when the other has let go.

        Raises
        ------
        OSError
            If the file cannot be made.
        """
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in UNKNOWN_HERE:
                os.close(file)
                if isinstance(error, BlockingIOError):
                    return False
                raise
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        self._file = file
        return True

    def holder(self) -> str:
        """The process that took it last, as it called itself."""
        try:
            return self._path.read_text(encoding="utf-8").strip() or "?"
        except OSError:
            return "?"

    def release(self) -> None:
        """Let go of it; nothing if it is not held."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        self.take(wait=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
