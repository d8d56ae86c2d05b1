"""Handing jobs to Hydra's launcher, whichever it is, until each has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from hydra.plugins.launcher import Launcher

from ..run_info import RunInfo
from ..sweeps import JobState, SweepFolder, Words, mark
from .status import RUN_FAILED, say

ATTEMPTS = 2  # of a job whose process dies; with it die innocent ones beside
Compose = Callable[[Words], tuple[dict[str, Any], RunInfo]]


class Launches:
    """Launches the jobs of one sweep.

    Parameters
    ----------
    compose: the config of a job, for the record of one whose process died without a word.
    batch: at most so many jobs are handed to the launcher at once; None: all.
    """

    def __init__(self, launcher: Launcher, folder: SweepFolder, compose: Compose, batch: int | None) -> None:
        self._launcher, self._folder, self._compose, self._batch = launcher, folder, compose, batch

    def run(self, jobs: Mapping[int, Words]) -> None:
        """Run ``jobs``, by number, but those that are finished. A job that fails says so in its folder.

        Raises
        ------
        Exception
            What the launcher raises, if it can start none of them.
        """
        left = [number for number in jobs if self._folder.state(number) is not JobState.FINISHED]
        size = self._batch or max(len(left), 1)
        for start in range(0, len(left), size):
            self._run({number: jobs[number] for number in left[start : start + size]})

    def _run(self, jobs: dict[int, Words]) -> None:
        died: Counter[int] = Counter()
        while jobs:
            error = self._launch(jobs)
            left = {number: words for number, words in jobs.items() if self._open(number)}
            begun = [number for number in left if self._folder.state(number) is JobState.BEGUN]
            if error is not None and len(left) == len(jobs) and not begun:
                raise error
            died.update(begun)
            for number in [n for n in left if error is None or died[n] >= ATTEMPTS]:
                self._give_up(number, left.pop(number), error)
            jobs = left

    def _open(self, number: int) -> bool:
        return self._folder.state(number) in (JobState.NEW, JobState.BEGUN)

    def _launch(self, jobs: Mapping[int, Words]) -> Exception | None:
        """Hand them to the launcher; what it raised, if a job's process died for instance."""
        first = min(jobs)
        in_order = list(jobs) == list(range(first, first + len(jobs)))
        words = [[*words, *(() if in_order else (f"hydra.sweep.subdir={n}",))] for n, words in jobs.items()]
        try:
            self._launcher.launch(words, initial_job_idx=first)
        except Exception as error:  # noqa: BLE001 - each launcher has errors of its own
            return error
        return None

    def _give_up(self, number: int, words: Words, error: Exception | None) -> None:
        from ..serve import record_failure

        why = f"its process died: {type(error).__name__}" if error else "it ended without a result"
        plain, info = self._compose(words)
        folder = self._folder.folder(number)
        record_failure(folder, plain, info, why)
        mark(folder, ok=False, seconds=0.0, overrides=info.overrides)
        say(f"run {number} ({info.label}) failed: {why}", RUN_FAILED)
