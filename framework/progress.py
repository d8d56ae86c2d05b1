"""Progress of a run: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .session import Progress as Stage

LINE_EVERY_S, DRAW_EVERY_S = 10.0, 0.1


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
        self._next_s = time.monotonic() + (0.0 if self._console.is_terminal else LINE_EVERY_S)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("conversations"))
            note = TextColumn("{task.fields[note]}")
            self._bar = Progress(*columns, note, TimeElapsedColumn(), console=self._console, transient=True)
            self._task = self._bar.add_task(self._label, total=None, note="")
            self._bar.start()
        return self

    def __call__(self, stage: Stage) -> None:
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + (DRAW_EVERY_S if self._bar else LINE_EVERY_S)
        note = f"{stage.requests} requests, {self._clock} time {stage.now_s:.0f} s"
        if self._bar is not None:
            self._bar.update(self._task, completed=stage.conversations, total=stage.total_conversations, note=note)
        else:
            done = f"{stage.conversations}/{stage.total_conversations} conversations"
            print(f"{self._label}: {done}, {note}", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class StepProgress:
    """Progress of work of a known number of steps: a bar in a terminal, a line now and then elsewhere.

    Parameters
    ----------
    label: what runs. steps: how many there are. unit: what they are called.
    """

    def __init__(self, label: str, steps: int, unit: str, console: Console | None = None) -> None:
        self._label, self._steps, self._unit, self._done = label, steps, unit, 0
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._next_s = time.monotonic() + LINE_EVERY_S

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(self._unit))
            note = TextColumn("{task.fields[note]}")
            self._bar = Progress(*columns, note, TimeElapsedColumn(), console=self._console, transient=True)
            self._task = self._bar.add_task(self._label, total=self._steps, note="")
            self._bar.start()
        return self

    def advance(self, note: str = "") -> None:
        """One step is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=note)
        elif time.monotonic() >= self._next_s and self._done < self._steps:
            self._next_s = time.monotonic() + LINE_EVERY_S
            print(f"{self._label}: {self._done}/{self._steps} {self._unit}, {note}", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
