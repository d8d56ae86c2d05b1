"""Progress of a sweep, as its folder shows it: right for every launcher, on this machine or another."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .jobs import BEAT, JobState, job_state, read_mark

LOOK_EVERY_S, LINE_EVERY_S = 0.5, 60.0
SHOWN_JOBS = 4
ENDED = (JobState.FINISHED, JobState.FAILED)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a sweep stands.

    Attributes
    ----------
    total, done, failed, running: numbers of jobs; ``done`` were finished, now or by the process that this one resumes.
    running_share: of the running jobs, how many are behind them together (two half-done ones make 1.0).
    left_s: seconds to the end if the rest takes as long as what has ended since the start; None before any has.
    """

    total: int
    done: int
    failed: int
    running: int
    running_share: float
    left_s: float | None

    def __str__(self) -> str:
        parts = [f"{self.done} of {self.total} jobs done"]
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.running} running"] if self.running else []
        parts += [f"{clock(self.left_s)} left"] if self.left_s is not None else []
        return ", ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class SweepWatch:
    """Looks at the folders of jobs; those that have ended are not looked at again."""

    def __init__(self) -> None:
        self._states: dict[Path, JobState] = {}
        self._before: set[Path] = set()
        self._started_s = time.monotonic()

    def add(self, folders: Iterable[Path]) -> None:
        """These too; those that have ended already count, but tell nothing of how long a job takes."""
        for folder in folders:
            self._states[folder] = job_state(folder)
            if self._states[folder] in ENDED:
                self._before.add(folder)

    def look(self) -> Standing:
        """Where it stands now."""
        for folder, state in self._states.items():
            if state not in ENDED:
                self._states[folder] = job_state(folder)
        counts = Counter(self._states.values())
        share = sum(_share(beat) for beat in map(_beat, self.running()))
        ended_now = sum(state in ENDED for folder, state in self._states.items() if folder not in self._before)
        left = len(self._states) - counts[JobState.FINISHED] - counts[JobState.FAILED]
        passed_s, worked = time.monotonic() - self._started_s, ended_now + share
        left_s = passed_s * (left - share) / worked if ended_now and worked else None
        running = counts[JobState.BEGUN]
        return Standing(len(self._states), counts[JobState.FINISHED], counts[JobState.FAILED], running, share, left_s)

    def running(self) -> list[Path]:
        """The folders of the jobs that run."""
        return [folder for folder, state in self._states.items() if state is JobState.BEGUN]


def _beat(folder: Path) -> dict[str, Any]:
    """What the job tells of itself; nothing if it does not, or not yet."""
    try:
        content = json.loads((folder / BEAT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _share(beat: dict[str, Any]) -> float:
    return min(beat["done"] / beat["total"], 1.0) if beat.get("total") else 0.0


class SweepProgress:
    """A bar over the jobs with the running ones below it, or a line a minute where there is no terminal.

    Use it as a context manager around the launches; :meth:`add` tells it of jobs.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._watch = SweepWatch()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="sweep progress")
        self._bar: Progress | None = None
        self._whole = TaskID(0)
        self._lines: list[TaskID] = []
        self._next_s = time.monotonic() + LINE_EVERY_S

    def add(self, folders: Iterable[Path]) -> None:
        """The sweep has these jobs too."""
        with self._lock:
            self._watch.add(folders)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn())
            note = TextColumn("{task.fields[note]}")
            self._bar = Progress(*columns, note, TimeElapsedColumn(), console=self._console, transient=True)
            self._whole = self._bar.add_task("jobs", total=None, note="")
            self._lines = [self._bar.add_task("", total=None, note="", visible=False) for _ in range(SHOWN_JOBS)]
            self._bar.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.stop()

    def _follow(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            if self._bar is not None or time.monotonic() >= self._next_s:
                self._show()

    def _show(self) -> None:
        with self._lock:
            standing, running = self._watch.look(), self._watch.running()
        if self._bar is None:
            self._next_s = time.monotonic() + LINE_EVERY_S
            print(f"sweep: {standing}", file=sys.stderr, flush=True)
            return
        ended = standing.done + standing.failed
        note = str(standing).partition(" jobs done")[2].removeprefix(", ")
        self._bar.update(self._whole, total=standing.total, completed=ended, note=note)
        for line, folder in zip(self._lines, [*running[:SHOWN_JOBS], *[None] * SHOWN_JOBS], strict=False):
            self._show_job(self._bar, line, folder)

    @staticmethod
    def _show_job(bar: Progress, line: TaskID, folder: Path | None) -> None:
        if folder is None:
            bar.update(line, visible=False)
            return
        beat = _beat(folder)
        name = f"  {folder.name}: {beat.get('label', 'starts')}"
        bar.update(
            line, description=name, total=beat.get("total"), completed=beat.get("done", 0), note="", visible=True
        )


def seconds_in_jobs(folders: Iterable[Path]) -> float:
    """The wall time that the jobs in ``folders`` took, together."""
    return sum(float(read_mark(folder).get("seconds", 0.0)) for folder in folders)
