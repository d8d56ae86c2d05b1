"""Which jobs a sweep has: all at once, or the next ones by what the last ones gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .key import Words

Summaries = Mapping[Words, Mapping[str, Any]]


class Plan(Protocol):
    """Asked again and again for the jobs to run next, until there are none."""

    def next(self, summaries: Summaries) -> list[Words]:
        """The overrides of each job to run now; ``summaries`` of all jobs so far, those that failed left out."""
        ...

    def notes(self) -> list[str]:
        """What the user should know at the end, a line each."""
        ...


class Grid:
    """All jobs at once."""

    def __init__(self, jobs: Sequence[Words]) -> None:
        self._left = list(jobs)

    def next(self, summaries: Summaries) -> list[Words]:
        """All of them, then none."""
        jobs, self._left = self._left, []
        return jobs

    def notes(self) -> list[str]:
        """Nothing."""
        return []
