"""How much better than a baseline: paired by seed, with bootstrap intervals and a test.

An *improvement* of a time or a rate is a factor, above 1 if better: baseline / own of what should be small, own /
baseline of what should be large; over seeds the geometric mean. That of a hit ratio is a difference in points. The
interval is an expanded percentile bootstrap over the seeds that both have (Hesterberg 2015, "What Teachers Should Know
About the Bootstrap"): its tails are those of a t interval of as few seeds, for the plain percentiles of few values are
too narrow. *Significant* is what a paired t-test at 95 % says, of logarithms where the improvement is a factor;
two-sided, not corrected for many comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .quality_tables import Grid, markdown_grid
from .rows import Row, estimate, quantile_t95
from .runs import Setting
from .table import METRICS, Cell, Metric, Table

NAMES = ("ttft_p50_s", "ttft_p99_s", "normalized_mean_s_per_token", "output_tokens_per_s", "hit_ratio_token")
POINTS = "hit_ratio_token"
USUAL = ("vllm", "vllm_stateless")
DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class Improvement:
    """Over ``n`` seeds: ``value``, its 95 % interval and whether it is significant; None with fewer than two."""

    value: float
    low: float | None
    high: float | None
    n: int
    significant: bool | None

    def text(self, points: bool) -> str:
        """The value with its interval."""

        def shown(value: float) -> str:
            return f"{100 * value:+.1f}" if points else f"{value:.3f}" if 0.95 < value < 1.05 else f"{value:.3g}"

        own = shown(self.value) if points else f"{shown(self.value)}x"
        return own if self.low is None or self.high is None else f"{own} [{shown(self.low)}, {shown(self.high)}]"


@dataclass(frozen=True, slots=True)
class ImprovementTable:
    """All systems of one setting against ``baseline``. ``found[label][metric's name]``: None where it is not known."""

    setting: Setting
    baseline: str
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...] = field(repr=False)
    found: dict[str, dict[str, Improvement | None]]

    @property
    def title(self) -> str:
        """What is shown."""
        return f"improvement over {self.baseline}: {self.setting}"

    @property
    def caption(self) -> str:
        """What the figures are, n, and the test."""
        counts = sorted({one.n for by in self.found.values() for one in by.values() if one is not None})
        n = " to ".join(dict.fromkeys(str(count) for count in (counts[:1] + counts[-1:])))
        what = "x: times better than the baseline (geometric mean over seeds); points: difference."
        if counts and counts[-1] < 2:
            return f"{what} One seed: no intervals, differences are not tested."
        return (
            f"{what} n = {n} seeds, paired. [ ]: 95 % interval, bootstrap over seeds ({DRAWS:,} draws, expanded "
            "percentiles). Significant?: paired t-test, 95 %, two-sided, not corrected for many comparisons."
        )

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Two columns for each figure."""
        pairs = ((one.title, "points" if one.name == POINTS else "times better") for one in self.metrics)
        return tuple(header for pair in pairs for header in (pair, ("significant?", "paired t")))

    def cells(self, label: str) -> tuple[Cell, ...]:
        """The cells of one row."""
        cells: list[Cell] = []
        for metric in self.metrics:
            one = self.found[label][metric.name]
            said = "-" if one is None else {None: "not tested", True: "yes", False: "no"}[one.significant]
            cells += [Cell("-" if one is None else one.text(metric.name == POINTS)), Cell(said)]
        return tuple(cells)

    def csv_figures(self, label: str) -> Iterator[tuple[str, object]]:
        """(column, value) for ``comparison.csv``."""
        yield "baseline", self.baseline
        for name, one in self.found.get(label, {}).items():
            if one is not None:
                told = {"": one.value, "_low": one.low, "_high": one.high, "_significant": one.significant}
                for end, value in told.items():
                    yield f"{self.setting.kind}_{name}_improvement{end}", "" if value is None else value


def csv_names(kinds: Sequence[str]) -> list[str]:
    """The columns of improvements."""
    ends = ("", "_low", "_high", "_significant")
    return ["baseline", *(f"{kind}_{name}_improvement{end}" for kind in kinds for name in NAMES for end in ends)]


def improvements(tables: Sequence[Table], baseline: str | None = None) -> list[ImprovementTable]:
    """A table for each setting that has ``baseline`` and something beside it.

    ``baseline``: a label, or a system of which there is one row; None: vllm, vllm_stateless or the first row that came
    to its end and sees no future.
    """
    found = []
    for table in tables:
        base = _baseline(table.rows, baseline)
        rows = tuple(row for row in table.rows if row.ok and row is not base)
        if base is not None and rows:
            metrics = tuple(one for one in METRICS if one.name in NAMES)
            by_row = {row.label: {one.name: improvement(one, row, base) for one in metrics} for row in rows}
            kept = tuple(one for one in metrics if any(by[one.name] is not None for by in by_row.values()))
            found.append(ImprovementTable(table.setting, base.label, kept, rows, by_row))
    return found


def _baseline(rows: Sequence[Row], wanted: str | None) -> Row | None:
    finished = [row for row in rows if row.ok]
    if wanted is not None:
        exact = [row for row in finished if row.label == wanted]
        alike = exact or [row for row in finished if row.system == wanted]
        return alike[0] if len(alike) == 1 else None
    ranked = [row for row in finished if not row.oracle]
    usual = [row for name in USUAL for row in ranked if row.label == name]
    return next(iter([*usual, *ranked]), None)


def improvement(metric: Metric, row: Row, base: Row) -> Improvement | None:
    """That of ``row`` over ``base`` in ``metric``; None where it is not known or a queue grew without bound."""
    if metric.latency and (row.saturated or base.saturated):
        return None
    own, other = row.values(metric.path), base.values(metric.path)
    seeds = sorted(own.keys() & other.keys())
    sign = 1.0 if metric.best == "max" else -1.0
    if metric.name == POINTS:
        found = [sign * (own[seed] - other[seed]) for seed in seeds]
        return _improvement(np.array(found), lambda value: value) if found else None
    if not seeds or min(*(own[seed] for seed in seeds), *(other[seed] for seed in seeds), math.inf) <= 0:
        return None
    return _improvement(np.array([sign * math.log(own[seed] / other[seed]) for seed in seeds]), math.exp)


def _improvement(values: NDArray[np.float64], shown: Callable[[float], float]) -> Improvement:
    mean, n = estimate(values.tolist()), len(values)
    if mean.half_width is None:
        return Improvement(shown(mean.mean), None, None, n, None)
    low, high = interval(values)
    significant = abs(mean.mean) > mean.half_width
    return Improvement(shown(mean.mean), shown(low), shown(high), n, significant)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the mean of ``values`` [n], n >= 2, by expanded percentile bootstrap; deterministic."""
    n = len(values)
    drawn = np.random.default_rng(n).integers(0, n, (DRAWS, n))
    tail = 0.5 * math.erfc(math.sqrt(n / (n - 1)) * quantile_t95(n - 1) / math.sqrt(2))
    low, high = np.quantile(values[drawn].mean(axis=1), (tail, 1 - tail))
    return float(low), float(high)


def grid(table: ImprovementTable) -> Grid:
    """The table as it is shown."""
    rows = tuple((row.label, row.oracle, table.cells(row.label)) for row in table.rows)
    return Grid(table.title, table.headers, rows)


def markdown(table: ImprovementTable) -> str:
    """The table for ``comparison.md``."""
    return f"{markdown_grid(grid(table), 'system')}\n\n{table.caption}"
