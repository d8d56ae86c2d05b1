"""What can happen to a page on its way to or from the disk: counted by kind, reported in a few lines."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Outcome(IntEnum):
    """How one page of a batch fared; every kind but ``DONE`` is a failure."""

    STALLED = 0  # nobody has settled it: its I/O did not return in time
    DONE = 1
    KEY = 2
    CHECKSUM = 3
    SHORT = 4
    MISSING = 5
    IO = 6
    FULL = 7
    CLOSED = 8


_MEANING = {
    Outcome.STALLED: "came to nothing: the disk did not answer in time",
    Outcome.KEY: "asked for in a slot that holds another page or none",
    Outcome.CHECKSUM: "failed the checksum",
    Outcome.SHORT: "cut off: the file ends early",
    Outcome.MISSING: "lost with a missing file",
    Outcome.IO: "failed by an I/O error",
    Outcome.FULL: "not written: no space left",
    Outcome.CLOSED: "refused: the tier is closed",
}


@dataclass(slots=True)
class FaultLog:
    """Counts failed pages by kind; thread-safe.

    Attributes
    ----------
    counts: failed pages so far, by the kind's name in lower case; kinds that never happened are absent.
    every_s: a kind that goes on is reported again at most this often.
    """

    folder: Path
    every_s: float = 30.0
    counts: dict[str, int] = field(default_factory=dict)
    _lines: list[str] = field(default_factory=list)
    _reported_s: dict[Outcome, float] = field(default_factory=dict)
    _details: dict[Outcome, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def settle(self, outcomes: NDArray[np.int8]) -> NDArray[np.int64]:
        """Count the failures among ``outcomes`` (an ``Outcome`` each); their indices, int64, ascending."""
        failed = np.flatnonzero(outcomes != Outcome.DONE)
        if len(failed):
            kinds, pages = np.unique(outcomes[failed], return_counts=True)
            for kind, count in zip(kinds.tolist(), pages.tolist(), strict=True):
                self.add(Outcome(kind), count)
        return failed

    def add(self, kind: Outcome, pages: int) -> None:
        """Count ``pages`` of ``kind``; a line the first time, then at most every ``every_s`` seconds."""
        with self._lock:
            name, now_s = kind.name.lower(), time.monotonic()
            self.counts[name] = self.counts.get(name, 0) + pages
            if now_s - self._reported_s.get(kind, -self.every_s) >= self.every_s:
                self._reported_s[kind] = now_s
                detail = f" ({self._details[kind]})" if kind in self._details else ""
                self._say(f"pages {_MEANING[kind]}{detail}: {self.counts[name]} so far; they count as misses")

    def explain(self, kind: Outcome, detail: str) -> None:
        """What the system said about the latest failure of ``kind``."""
        with self._lock:
            self._details[kind] = detail

    def say(self, line: str) -> None:
        """Report ``line`` once."""
        with self._lock:
            self._say(line)

    def _say(self, line: str) -> None:
        self._lines.append(f"disk tier {self.folder}: {line}")

    def take(self) -> list[str]:
        """The lines since the last call."""
        with self._lock:
            lines, self._lines = self._lines, []
            return lines
