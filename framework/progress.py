"""Progress of long work: a bar in a terminal, a line now and then elsewhere. A sweep's jobs tell it to the sweep."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .session import Progress as Stage

LINE_EVERY_S, DRAW_EVERY_S, TELL_EVERY_S = 10.0, 0.1, 1.0
TOLD = "KVARENA_PROGRESS"  # the file that a sweep reads a job's progress from: the terminal has room for one bar


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """Within it, progress is written to ``path`` once a second instead of being shown."""
    before = os.environ.get(TOLD)
    os.environ[TOLD] = str(path)
    try:
        yield
    finally:
        os.environ.pop(TOLD)
        if before is not None:
            os.environ[TOLD] = before
        path.unlink(missing_ok=True)


def _tell(label: str, done: float, total: float | None, note: str) -> None:
    """Never fails: progress is no reason to stop."""
    path = Path(os.environ[TOLD])
    beside = path.with_name(path.name + ".new")
    with contextlib.suppress(OSError):
        beside.write_text(json.dumps({"label": label, "done": done, "total": total, "note": note}), encoding="utf-8")
        beside.replace(path)


class RunProgress:
    """Call it with the session's state as often as it changes; use it as a context manager.

    Parameters
    ----------
    label: what runs.
    clock: what the run's seconds are called (``"simulated"`` or ``"run"``).
    """

    def __init__(self, label: str, clock: str, console: Console | None = None) -> None:
        self._label, self._clock = label, clock
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._told = TOLD in os.environ
        self._next_s = time.monotonic() + (0.0 if self._told or self._console.is_terminal else LINE_EVERY_S)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._told:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("conversations"))
            note = TextColumn("{task.fields[note]}")
            self._bar = Progress(*columns, note, TimeElapsedColumn(), console=self._console, transient=True)
            self._task = self._bar.add_task(self._label, total=None, note="")
            self._bar.start()
        return self

    def __call__(self, stage: Stage) -> None:
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + (DRAW_EVERY_S if self._bar else TELL_EVERY_S if self._told else LINE_EVERY_S)
        note = f"{stage.requests} requests, {self._clock} time {stage.now_s:.0f} s"
        if self._told:
            _tell(self._label, stage.conversations, stage.total_conversations, note)
        elif self._bar is not None:
            self._bar.update(self._task, completed=stage.conversations, total=stage.total_conversations, note=note)
        else:
            done = f"{stage.conversations}/{stage.total_conversations} conversations"
            print(f"{self._label}: {done}, {note}", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class WorkProgress:
    """Progress of work of many steps, as a context manager: :meth:`advance` by steps, tell it how many there are with
    :meth:`plan`, and what is being done with :meth:`note`."""

    def __init__(self, label: str, total: float | None = None, console: Console | None = None) -> None:
        self._label, self._total, self._done, self._note = label, total, 0.0, ""
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._told = TOLD in os.environ
        self._next_s = time.monotonic() + (0.0 if self._told else LINE_EVERY_S)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._told:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
            times = (TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, *times, console=self._console, transient=True)
            self._task = self._bar.add_task(self._label, total=self._total, note="")
            self._bar.start()
        return self

    def plan(self, total: float) -> None:
        """There will be ``total`` steps in all."""
        self._total = total
        self._draw()

    def note(self, note: str) -> None:
        """Say what is being done."""
        self._note = note
        self._draw()

    def advance(self, steps: float = 1.0) -> None:
        """So many more steps are done."""
        self._done += steps
        self._draw()

    def _draw(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, total=self._total, completed=self._done, note=self._note)
        elif time.monotonic() < self._next_s:
            return
        elif self._told:
            self._next_s = time.monotonic() + TELL_EVERY_S
            _tell(self._label, self._done, self._total, self._note)
        else:
            self._next_s = time.monotonic() + LINE_EVERY_S
            done = f"{self._done / self._total:.0%}" if self._total else f"{self._done:.0f} steps"
            print(f"{self._label}: {done} {self._note}".rstrip(), file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
