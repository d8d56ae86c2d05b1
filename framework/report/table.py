"""The table of a comparison: figures with units, the best in bold, spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .numbers import Unit, aligned, count_unit, short, time_unit
from .rows import Row, differs
from .runs import Setting


@dataclass(frozen=True, slots=True)
class Metric:
    """A column: ``name`` in files (SI units), ``title`` for people, ``path`` in the summary, which end is ``best``.

    ``rare``: shown only where some row has it.
    """

    name: str
    title: str
    path: tuple[str, ...]
    best: Literal["min", "max"]
    unit: Callable[[Sequence[float]], Unit]
    latency: bool = False
    rare: bool = False


METRICS = (
    Metric("ttft_p50_s", "TTFT p50", ("latency", "ttft_s", "p50"), "min", time_unit, latency=True),
    Metric("ttft_p99_s", "TTFT p99", ("latency", "ttft_s", "p99"), "min", time_unit, latency=True),
    Metric(
        "normalized_mean_s_per_token",
        "normalized latency",
        ("latency", "normalized_s_per_token", "mean"),
        "min",
        lambda values: time_unit(values, "/token"),
        latency=True,
    ),
    Metric("requests_per_s", "throughput", ("throughput", "requests_per_s"), "max", lambda _: Unit("requests/s")),
    Metric(
        "output_tokens_per_s", "throughput", ("throughput", "output_tokens_per_s"), "max", lambda _: Unit("tokens/s")
    ),
    Metric("hit_ratio_token", "hit ratio", ("cache", "hit_ratio", "token"), "max", lambda _: Unit("% of tokens", 100)),
    Metric(
        "recomputed_tokens",
        "recomputed",
        ("cache", "recomputed_tokens"),
        "min",
        lambda values: count_unit(values, "tokens"),
    ),
    Metric("regret_infinite", "regret", ("regret", "infinite"), "min", lambda _: Unit("% recomputed", 100)),
    Metric("regret_belady", "below belady", ("regret", "belady"), "min", lambda _: Unit("points", 100), rare=True),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure as text. ``best``: to be set in bold; ``tied``: not significantly different from the best."""

    text: str
    best: bool = False
    tied: bool = False

    def marked(self, bold: str) -> str:
        """The text with the marks: ``bold`` is a format such as ``**{}**``."""
        return bold.format(self.text) if self.best else f"{self.text} ≈" if self.tied else self.text


@dataclass(frozen=True, slots=True)
class Table:
    """All contestants in one setting. ``cells[i][j]``: row i, column j; ``headers[j]`` = (title, unit)."""

    setting: Setting
    rows: tuple[Row, ...]
    headers: tuple[tuple[str, str], ...]
    cells: tuple[tuple[Cell, ...], ...]

    @property
    def caption(self) -> str:
        """Workload, model, hardware, n, seeds, version, and what the marks mean."""
        return f"{describe(self.setting, self.rows)}. {_marks(self.rows)}"


def make_table(setting: Setting, rows: Sequence[Row]) -> Table:
    """Lay out ``rows`` of one setting."""
    return _lay_out(setting, rows, rows)


def together(tables: Sequence[Table]) -> list[Table]:
    """``tables`` with the same columns in the same units."""
    rows = [row for table in tables for row in table.rows]
    return [_lay_out(table.setting, table.rows, rows) for table in tables]


def _lay_out(setting: Setting, rows: Sequence[Row], beside: Sequence[Row]) -> Table:
    """``beside``: the rows that decide which columns there are, and in which units."""
    metrics = [one for one in METRICS if not one.rare or any(row.estimate(one.path) is not None for row in beside)]
    units = [_unit(metric, beside) for metric in metrics]
    columns = [_column(metric, rows, unit) for metric, unit in zip(metrics, units, strict=True)]
    headers = tuple((metric.title, unit.name) for metric, unit in zip(metrics, units, strict=True))
    cells = tuple(tuple(cells[i] for cells in columns) for i in range(len(rows)))
    return Table(setting, tuple(rows), headers, cells)


def describe(setting: Setting, rows: Sequence[Row]) -> str:
    """Workload, model, hardware, n, seeds and version, as every caption says them."""
    runs = [run for row in rows for run in row.runs]
    seeds = sorted({int(run.info["seed"] or 0) for run in runs})
    counts = sorted({int(run.figure("workload", "requests") or 0) for run in runs if run.ok})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    versions = sorted({_version(run.info) for run in runs})
    said = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return f"{setting}; n = {n} requests per run, {said}; kvarena {', '.join(versions)}"


def _version(info: dict[str, object]) -> str:
    commit = info.get("git_commit")
    changed = "+" if str(commit).endswith("+") else ""
    return f"{info['version']} ({str(commit)[:9]}{changed})" if commit else str(info["version"])


def _marks(rows: Sequence[Row]) -> str:
    room = (
        "Recomputed, regret: reusable tokens computed again, all of which a cache that never evicts would have reused."
    )
    if any(row.estimate(("regret", "belady")) for row in rows):
        room += " Below belady: hit ratio that Belady's policy has more."
    if max((len(row.runs) for row in rows), default=0) < 2:
        return f"Bold: best. One seed: differences are not tested. {room}"
    return (
        f"Bold: best; ±: 95 % confidence interval over seeds; ≈: not significantly different (paired t, 95 %). {room}"
    )


def _unit(metric: Metric, rows: Sequence[Row]) -> Unit:
    estimates = (row.estimate(metric.path) for row in rows)
    return metric.unit([found.mean for found in estimates if found is not None])


def _column(metric: Metric, rows: Sequence[Row], unit: Unit) -> list[Cell]:
    estimates = [row.estimate(metric.path) for row in rows]
    texts = ["-" if found is None else short(found.mean * unit.factor) for found in estimates]
    ranked = {row.label: text for row, text in zip(rows, texts, strict=True) if text != "-" and _ranked(metric, row)}
    winner = _winner(metric, [row for row in rows if row.label in ranked])
    shown = winner if len(set(ranked.values())) > 1 else None
    cells = []
    for row, found, text in zip(rows, estimates, texts, strict=True):
        spread = found.half_width if found is not None else None
        full = text if spread is None else f"{text} ± {aligned(spread * unit.factor, text)}"
        best = shown is not None and ranked.get(row.label) == ranked[shown.label]
        tied = shown is not None and row.label in ranked and not best and _tied(metric, row, shown)
        cells.append(Cell(full, best, tied))
    return cells


def _ranked(metric: Metric, row: Row) -> bool:
    return row.ok and not row.oracle and not (metric.latency and row.saturated)


def _winner(metric: Metric, rows: Sequence[Row]) -> Row | None:
    """The best of ``rows``, all of which have the figure."""
    means = [(found.mean, i) for i, row in enumerate(rows) if (found := row.estimate(metric.path)) is not None]
    return rows[(min if metric.best == "min" else max)(means)[1]] if means else None


def _tied(metric: Metric, row: Row, winner: Row) -> bool:
    return differs(row.values(metric.path), winner.values(metric.path)) is False
