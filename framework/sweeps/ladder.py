"""A ladder of rates up to saturation, and a few rungs around the knee, for each contestant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .key import Words
from .plans import Summaries

AT_ONCE = 0.05


@dataclass(frozen=True, slots=True)
class Ladder:
    """How to look for the rate at which a contestant saturates.

    Attributes
    ----------
    key: the config key of the rate. first: the rate to begin with.
    factor: from one rung to the next, up, or down if the first is saturated already.
    bisect: how often the gap between the highest rate that is served and the lowest that is not is halved (on a log
        scale). All rates are ``first * factor**(k / 2**bisect)`` with whole k: contestants meet at the same rates.
    rungs: at most so many rates up or down from the first.
    queue_share: a run is saturated, too, if its requests spend so much of their time waiting to be admitted.
    """

    key: str = "workload.rate"
    first: float = 1.0
    factor: float = 2.0
    bisect: int = 2
    rungs: int = 12
    queue_share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.first < math.inf:
            raise ValueError(f"first is {self.first}, expected a rate above 0")
        if not 1 < self.factor < math.inf:
            raise ValueError(f"factor is {self.factor}, expected more than 1")
        if not 0 <= self.bisect <= 8:
            raise ValueError(f"bisect is {self.bisect}, expected 0 to 8")
        if not 1 <= self.rungs <= 64:
            raise ValueError(f"rungs is {self.rungs}, expected 1 to 64")
        if not 0 < self.queue_share <= 1:
            raise ValueError(f"queue_share is {self.queue_share}, expected above 0 to 1")

    @property
    def step(self) -> int:
        """Places between two rungs of the ladder; the places between them are for bisection."""
        return int(2**self.bisect)

    def rate(self, place: int) -> float:
        """The rate at ``place``, of four figures."""
        return float(f"{self.first * self.factor ** (place / self.step):.4g}")

    def next_place(self, served: Mapping[int, bool | None]) -> int | None:
        """The place to try next, or None at the end.

        Parameters
        ----------
        served: for each place so far whether its rate was served (True), was too much (False), or could not be
            measured (None), which ends the search.
        """
        if not served:
            return 0
        if None in served.values():
            return None
        below = [place for place, ok in served.items() if ok]
        above = [place for place, ok in served.items() if not ok]
        if not above:
            top = max(below)
            return top + self.step if top < (self.rungs - 1) * self.step else None
        low = [place for place in below if place < min(above)]
        if not low:
            bottom = min(above)
            return bottom - self.step if bottom > -(self.rungs - 1) * self.step else None
        gap = min(above) - max(low)
        return (max(low) + min(above)) // 2 if gap > 1 else None


class RateLadder:
    """A plan: each contestant climbs its own ladder, all of them a rung at a time, so that they can run side by side.

    ``contestants``: for each the overrides of its runs, one for each seed, without the rate. A rate is served if at
    least half of its runs were: all seeds stand at the same rates.
    """

    def __init__(self, ladder: Ladder, contestants: Sequence[Sequence[Words]]) -> None:
        self._ladder = ladder
        self._contestants = [tuple(map(tuple, runs)) for runs in contestants]
        self._served: list[dict[int, bool | None]] = [{} for _ in contestants]
        self._tried: list[int | None] = [None] * len(contestants)
        self._notes: list[str] = []

    def next(self, summaries: Summaries) -> list[Words]:
        """The next rung of every contestant that has not found its knee."""
        jobs: list[Words] = []
        for index, runs in enumerate(self._contestants):
            served, tried = self._served[index], self._tried[index]
            if tried is not None:
                served[tried] = self._verdict(runs, tried, summaries)
            self._tried[index] = place = self._ladder.next_place(served)
            if place is not None:
                jobs += [self._job(run, place) for run in runs]
        return jobs

    def notes(self) -> list[str]:
        """Which contestants were never saturated, and why."""
        return list(self._notes)

    def _job(self, run: Words, place: int) -> Words:
        return (*run, f"{self._ladder.key}={self._ladder.rate(place):g}")

    def _verdict(self, runs: Sequence[Words], place: int, summaries: Summaries) -> bool | None:
        found = [summary for run in runs if (summary := summaries.get(self._job(run, place))) is not None]
        rate, who = self._ladder.rate(place), " ".join(word for word in runs[0] if not word.startswith("seed="))
        if not found:
            self._notes.append(f"{who}: nothing above {self._ladder.key}={rate:g}, where all of its runs failed")
            return None
        served = 2 * sum(is_saturated(summary, self._ladder.queue_share) for summary in found) <= len(found)
        if served and all(arrives_at_once(summary, rate) for summary in found):
            short = "all conversations arrive at once; a higher workload.limit has more"
            self._notes.append(f"{who}: not saturated at {self._ladder.key}={rate:g}: {short}")
            return None
        return served


def is_saturated(summary: Mapping[str, Any], queue_share: float) -> bool:
    """The queue grew as long as requests arrived (``framework/metrics/saturation.py``), or requests spent at least
    ``queue_share`` of their time in it.

    In conversations a user waits for the reply: a queue may be long without growing, or the workload end before it has.
    """
    latency = summary.get("latency") or {}
    queue_s, all_s = ((latency.get(name) or {}).get("mean") or 0.0 for name in ("queue_s", "e2e_s"))
    return bool(summary.get("run", {}).get("saturated")) or (all_s > 0 and queue_s >= queue_share * all_s)


def arrives_at_once(summary: Mapping[str, Any], rate: float) -> bool:
    """The conversations of the run begin within 5 % of the time that it takes: a higher rate would offer no more."""
    workload = summary.get("workload") or {}
    return bool(workload.get("conversations", 0) / rate < AT_ONCE * workload.get("duration_s", 0.0))


def contestants(jobs: Sequence[Words]) -> list[list[Words]]:
    """The jobs, those together that differ in nothing but the seed."""
    groups: dict[Words, list[Words]] = {}
    for words in jobs:
        groups.setdefault(tuple(word for word in words if not word.startswith("seed=")), []).append(words)
    return list(groups.values())
