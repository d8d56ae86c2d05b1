"""A sweep's folder: its own from the start, resumed if it was left unfinished."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Literal

from ..metrics.files import replace_text
from .jobs import JobState, forget, job_state
from .key import Words
from .locks import Lock

BOOK, LOCK = "sweep.json", ".lock"
Status = Literal["running", "interrupted", "failed", "finished"]


class SweepFolder:
    """The folder of one sweep, held by this process until :meth:`close`; made by :func:`open_sweep`.

    Attributes
    ----------
    path: ``sweep.json`` in it says which jobs there are; each has a folder of its own, named by its number.
    resumed: an earlier process began it.
    """

    def __init__(self, path: Path, lock: Lock, book: dict[str, Any], resumed: bool) -> None:
        self.path, self.resumed = path, resumed
        self._lock, self._book = lock, book
        self._numbers: dict[Words, int] = {tuple(words): number for number, words in enumerate(book["jobs"])}

    @property
    def jobs(self) -> int:
        """How many jobs it has so far."""
        return len(self._numbers)

    def add(self, jobs: Iterable[Words]) -> list[int]:
        """The number of each job; those that are new get the next ones, and are written down."""
        numbers = [self._numbers.setdefault(words, len(self._numbers)) for words in jobs]
        if len(self._numbers) > len(self._book["jobs"]):
            self._book["jobs"] = [list(words) for words in self._numbers]
            self._write()
        return numbers

    def folder(self, number: int) -> Path:
        """Where job ``number`` runs."""
        return self.path / str(number)

    def state(self, number: int) -> JobState:
        """How far job ``number`` has come."""
        return job_state(self.folder(number))

    def counts(self) -> Counter[JobState]:
        """How many jobs are in which state."""
        return Counter(self.state(number) for number in range(self.jobs))

    def finished(self) -> list[Path]:
        """The folders of the jobs that are finished."""
        return [self.folder(number) for number in range(self.jobs) if self.state(number) is JobState.FINISHED]

    def renew(self) -> None:
        """What is not finished is to be done again."""
        for number in range(self.jobs):
            if self.state(number) is not JobState.FINISHED:
                forget(self.folder(number))

    def note(self, **facts: object) -> None:
        """Write facts about the sweep down."""
        self._book.update(facts)
        self._write()

    def close(self, status: Status) -> None:
        """Say how it ended, and let others have it."""
        with contextlib.suppress(OSError):  # without it the sweep is unfinished, which is true of a full disk
            self.note(status=status, ended=_now())
        self._lock.release()

    def _write(self) -> None:
        replace_text(self.path / BOOK, json.dumps(self._book, indent=1) + "\n")


def open_sweep(
    wanted: Path, key: str, code: str, command: Sequence[str], resume: bool
) -> tuple[SweepFolder, list[str]]:
    """The newest unfinished sweep with this ``key`` and ``code`` beside ``wanted`` that no one runs, or a new folder.

    Returns
    -------
    The folder, and what the user should know: sweeps that could have been resumed but for one thing.

    Raises
    ------
    OSError
        If no folder can be made.
    """
    notes: list[str] = []
    for path, book in _unfinished(wanted.parent, key) if resume else ():
        if book.get("code") != code:
            notes.append(f"{_shown(path)} is unfinished, but other code began it; this sweep starts anew")
            continue
        lock = Lock(path / LOCK)
        if not lock.take():
            notes.append(f"process {lock.holder()} runs this sweep in {_shown(path)}; this one has a folder of its own")
            continue
        if (latest := read_book(path)).get("status") != "finished":  # while the lock was free another may have ended it
            found = SweepFolder(path, lock, latest, resumed=True)
            found.note(status="running")
            return found, []
        lock.release()
    return _new(wanted, key, code, command), notes[:1]


def read_book(path: Path) -> dict[str, Any]:
    """The ``sweep.json`` in ``path``; empty if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        book = json.loads((path / BOOK).read_text(encoding="utf-8"))
        if isinstance(book, dict) and isinstance(book.get("jobs"), list):
            return book
    return {}


def _unfinished(parent: Path, key: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Sweeps in ``parent`` with this key that did not come to their end, newest first."""
    found = [(path.parent, read_book(path.parent)) for path in parent.glob(f"*/{BOOK}")]
    found.sort(key=lambda pair: str(pair[1].get("started")), reverse=True)
    for path, book in found:
        if book.get("key") == key and book.get("status") != "finished":
            yield path, book


def _new(wanted: Path, key: str, code: str, command: Sequence[str]) -> SweepFolder:
    """A folder that no one else has: its making is the claim."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    lock = Lock(path / LOCK)
    lock.take()
    made = SweepFolder(path, lock, {"schema": 1, "key": key, "code": code, "jobs": []}, resumed=False)
    made.note(status="running", started=_now(), command=list(command))
    return made


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _shown(path: Path) -> str:
    return os.path.relpath(path)
