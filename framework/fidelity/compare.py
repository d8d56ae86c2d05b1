"""Simulated figures against real ones: errors, spreads, verdicts, and the order of the systems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

MEAN_GOAL, TAIL_GOAL, HIT_GOAL = 0.05, 0.10, 0.01
METRICS = (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("e2e_s", "end-to-end"))
STATISTICS = (("mean", MEAN_GOAL), ("p99", TAIL_GOAL))
TIERS = ("device", "host", "disk")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one system.

    Attributes
    ----------
    real: one value per round. simulated: None where the simulation has none.
    goal: the largest error; relative, or absolute of a ratio.
    ratio: the figure is a share, its error a difference.
    """

    system: str
    metric: str
    statistic: str
    real: tuple[float, ...]
    simulated: float
    goal: float
    ratio: bool = False

    @property
    def centre(self) -> float:
        """The median of the real runs."""
        return median(self.real)

    @property
    def error(self) -> float:
        """Of the simulated figure."""
        difference = self.simulated - self.centre
        return difference if self.ratio else difference / self.centre

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest of the real runs, as errors from their median."""
        low, high = min(self.real) - self.centre, max(self.real) - self.centre
        return (low, high) if self.ratio else (low / self.centre, high / self.centre)

    @property
    def within_goal(self) -> bool:
        """The error is no larger than the goal."""
        return abs(self.error) <= self.goal + 1e-9

    @property
    def within_spread(self) -> bool:
        """The simulated figure lies among the real ones."""
        return len(self.real) > 1 and min(self.real) <= self.simulated <= max(self.real)

    @property
    def verdict(self) -> str:
        """``goal``, ``spread`` or ``missed``."""
        return "goal" if self.within_goal else "spread" if self.within_spread else "missed"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two systems that all real runs put in one order: ``faster`` before ``slower`` in ``metric``."""

    metric: str
    faster: str
    slower: str
    kept: bool


def compare_system(system: str, real: Sequence[Mapping[str, Any]], simulated: Mapping[str, Any]) -> list[Row]:
    """The rows of ``system`` from the summaries of its real runs and of the simulated one."""
    rows = []
    for key, metric in METRICS:
        for statistic, goal in STATISTICS:
            values = [_at(summary, "latency", key, statistic) for summary in (*real, simulated)]
            if None not in values:
                found = [float(value) for value in values if value is not None]
                rows.append(Row(system, metric, statistic, tuple(found[:-1]), found[-1], goal))
    return rows + list(_hit_rows(system, real, simulated))


def _hit_rows(system: str, real: Sequence[Mapping[str, Any]], simulated: Mapping[str, Any]) -> Iterator[Row]:
    paths = [("all", ("cache", "hit_ratio", "token"))]
    paths += [(tier, ("cache", "hit_ratio_by_tier", tier)) for tier in TIERS]
    for name, path in paths:
        values = [_at(summary, *path) for summary in (*real, simulated)]
        if name == "all" or any(values):
            found = [value or 0.0 for value in values]
            yield Row(system, "hit ratio", name, tuple(found[:-1]), found[-1], HIT_GOAL, ratio=True)


def _at(summary: Mapping[str, Any], *path: str) -> float | None:
    value: Any = summary
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def order_pairs(rows: Sequence[Row]) -> list[Pair]:
    """Every pair of systems that the real runs separate in a mean: all of one are below all of the other."""
    pairs = []
    for _, metric in METRICS:
        means = [row for row in rows if (row.metric, row.statistic) == (metric, "mean")]
        for one in means:
            for other in means:
                if max(one.real) < min(other.real):
                    pairs.append(Pair(metric, one.system, other.system, one.simulated < other.simulated))
    return pairs
