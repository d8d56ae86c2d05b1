"""Rows of a table: the runs of one system that differ in nothing but the seed, and their statistics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .runs import Run, Setting

# Two-sided 95 % quantiles of Student's t for 1 .. 30 degrees of freedom; beyond, the normal's.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over ``n`` seeds and the half width of its 95 % confidence interval (None for one seed)."""

    mean: float
    half_width: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant of a table: ``label`` as it is shown, ``runs`` one per seed in order of seeds."""

    label: str
    system: str
    runs: tuple[Run, ...]

    @property
    def oracle(self) -> bool:
        """Marked, and never ranked."""
        return any(run.oracle for run in self.runs)

    @property
    def saturated(self) -> bool:
        """In at least one seed the queue grew without bound."""
        return any(run.info.get("saturated") for run in self.runs)

    @property
    def ok(self) -> bool:
        """Every run came to its end."""
        return all(run.ok for run in self.runs)

    @property
    def failed_requests(self) -> int:
        """Over all seeds."""
        return int(sum(run.figure("workload", "failed") or 0 for run in self.runs))

    @property
    def notes(self) -> list[str]:
        """What a reader must know before he compares the row."""
        notes = ["oracle: sees the future, not ranked"] if self.oracle else []
        if not self.ok:
            bad = [run for run in self.runs if not run.ok]
            notes.append(f"{len(bad)} of {len(self.runs)} runs {bad[0].info['status']}: not ranked")
        if self.saturated:
            notes.append("saturated: the queue grew without bound, its latencies are not ranked")
        if self.failed_requests:
            total = int(sum(run.figure("workload", "requests") or 0 for run in self.runs))
            notes.append(f"{self.failed_requests} of {total} requests failed")
        if faults := self.faults:
            kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
            notes.append(f"faults of the memory tiers ({kinds}); no answer changed")
        return notes

    @property
    def faults(self) -> Counter[str]:
        """What went wrong with memory tiers, by kind, over all seeds."""
        found: Counter[str] = Counter()
        for run in self.runs:
            found.update((run.summary.get("cache") or {}).get("faults") or {})
        return Counter({kind: count for kind, count in found.items() if count})

    def values(self, path: Sequence[str]) -> dict[int, float]:
        """The figure at ``path`` by seed, where it was measured."""
        found = {int(run.info["seed"] or 0): run.figure(*path) for run in self.runs}
        return {seed: value for seed, value in found.items() if value is not None}

    def estimate(self, path: Sequence[str]) -> Estimate | None:
        """Mean and confidence interval over seeds, or None where nothing was measured."""
        values = list(self.values(path).values())
        return estimate(values) if values else None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % confidence interval (Student's t) of ``values``, at least one."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Estimate(mean, quantile_t95(n - 1) * math.sqrt(variance / n), n)


def quantile_t95(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's t for 1 or more degrees of freedom."""
    return _T95[degrees - 1] if degrees <= len(_T95) else 1.96


def differs(one: dict[int, float], other: dict[int, float]) -> bool | None:
    """Whether two rows differ at the 95 % level (paired t over their common seeds); None with fewer than two."""
    seeds = one.keys() & other.keys()
    if len(seeds) < 2:
        return None
    difference = estimate([one[seed] - other[seed] for seed in sorted(seeds)])
    assert difference.half_width is not None
    return abs(difference.mean) > difference.half_width


def group_rows(runs: Sequence[Run]) -> dict[Setting, list[Row]]:
    """Runs by setting, then by system, in order of appearance; oracles last.

    Only runs that differ in the seed share a row. Where one label has several runs of one seed, they are repetitions or
    differ in something that the summary does not tell: each gets a row of its own, labelled by its folder. A
    setting in which no run came to its end makes no table.
    """
    groups: dict[Setting, dict[str, list[Run]]] = {}
    served = {run.setting for run in runs if run.ok}
    for run in (run for run in runs if run.setting in served):
        groups.setdefault(run.setting, {}).setdefault(run.label, []).append(run)
    return {setting: _rows(systems) for setting, systems in groups.items()}


def _rows(systems: dict[str, list[Run]]) -> list[Row]:
    rows: list[Row] = []
    for system, runs in systems.items():
        runs = sorted(runs, key=lambda run: run.info["seed"] or 0)
        if len({run.info["seed"] for run in runs}) == len(runs):
            rows.append(Row(system, system, tuple(runs)))
        else:
            rows.extend(Row(f"{system} [{run.folder.name}]", system, (run,)) for run in runs)
    return sorted(rows, key=lambda row: row.oracle)
