"""Runs that nobody uses, by the time of their last use: what policies that weigh idle time keep."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from ...framework.policy import RunView


class IdleRuns:
    """Runs in groups of equal last use. O(log groups) per change."""

    def __init__(self) -> None:
        self._order: dict[RunView, int] = {}  # when it came here
        self._tick: dict[RunView, int] = {}
        self._groups: dict[int, dict[RunView, None]] = {}
        self._ticks: list[int] = []  # the groups' keys, sorted
        self._came = 0

    def __contains__(self, run: RunView | None) -> bool:
        return run in self._tick

    def order(self, run: RunView) -> int:
        """Smaller for runs that came earlier."""
        return self._order[run]

    def add(self, run: RunView) -> None:
        """``run`` is idle since its last use; again: it comes anew."""
        self.remove(run)
        self._came += 1
        self._put(run, run.last_use, self._came)

    def split(self, upper: RunView, lower: RunView) -> None:
        """``upper`` was part of ``lower``."""
        if lower in self._tick:
            self._put(upper, self._tick[lower], self._order[lower])

    def _put(self, run: RunView, tick: int, order: int) -> None:
        self._tick[run], self._order[run] = tick, order
        if tick not in self._groups:
            self._groups[tick] = {}
            insort(self._ticks, tick)
        self._groups[tick][run] = None

    def remove(self, run: RunView) -> None:
        """``run`` is not idle any more, or gone; not being here is not an error."""
        if run in self._tick:
            tick = self._tick.pop(run)
            del self._order[run], self._groups[tick][run]
            if not self._groups[tick]:
                del self._groups[tick], self._ticks[bisect_left(self._ticks, tick)]

    def longest_first(self) -> Iterator[tuple[int, list[RunView]]]:
        """Last use and runs of each group; groups that came meanwhile are left out."""
        for tick in list(self._ticks):
            yield tick, list(self._groups.get(tick, ()))
