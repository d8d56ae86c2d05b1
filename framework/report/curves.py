"""The miss-ratio curves of replays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .drawing import Picture, finish, label_ends, one_each, sheet, tall
from .replay import BELADY, INFINITE, ReplayRow, ReplayTable, shown_label
from .style import look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BESIDE = {BELADY: ("#222222", "--"), INFINITE: ("#777777", ":")}
_BASE = 2


def draw_miss_ratios(tables: Sequence[ReplayTable], folder: Path) -> list[Picture]:
    """Draw hit and miss ratio over the capacity, one figure for each of ``tables``, into ``folder``.

    Raises
    ------
    OSError
        If a file cannot be written.
    """

    def picture(table: ReplayTable, path: Path) -> Picture:
        bands = " Bands: smallest to largest over seeds." if _seeds(table) > 1 else ""
        text = f"{table.setting}. {table.caption.split(' Below')[0]}{bands}"
        return finish(_ratios(table), path, "Hit and miss ratio by capacity", text, table.setting)

    return one_each(tables, folder, "miss_ratio.png", picture)


def _seeds(table: ReplayTable) -> int:
    return max(len(by_seed) for row in table.rows for by_seed in row.figures.values())


def _ratios(table: ReplayTable) -> Figure:
    names = [shown_label(row) for row in table.rows]
    figure = sheet(12, height := tall(names))
    boxes = [(left, 0.85 / height, 0.35, 1 - 1.25 / height) for left in (0.05, 0.46)]
    hits, misses = (figure.add_axes(box) for box in boxes)
    _panel(hits, table, miss=False)
    _panel(misses, table, miss=True)
    hits.set_ylim(0, 1.02)
    hits.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    hits.set_title("Page accesses that hit")
    _log_percent(misses)
    misses.set_title("... that miss (log scale)")
    ends = [(*end, name, _look(row)[0]) for row, name in zip(table.rows, names, strict=True) if (end := _end(row))]
    label_ends(misses, [(x, y, f"{name} {y:.1%}", colour) for x, y, name, colour in ends])
    return figure


def _panel(axes: Axes, table: ReplayTable, miss: bool) -> None:
    for row in table.rows:
        capacities = _capacities(row)
        by_seed = [[abs(miss - one["hit_ratio"]) for one in row.figures[capacity].values()] for capacity in capacities]
        if not by_seed:
            continue
        colour, line = _look(row)
        middle = [float(np.mean(ratios)) for ratios in by_seed]
        marker = "" if row.label == INFINITE and len(capacities) > 1 else "o"
        axes.plot(capacities, middle, color=colour, linestyle=line, marker=marker, markersize=3, linewidth=1.8)
        if max(map(len, by_seed)) > 1:
            low, high = [min(ratios) for ratios in by_seed], [max(ratios) for ratios in by_seed]
            axes.fill_between(capacities, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xscale("log", base=_BASE)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(f"pages of {table.setting.page_tokens} tokens that the cache holds (log scale)")


def _capacities(row: ReplayRow) -> list[int]:
    return [capacity for capacity in row.figures if row.estimate(capacity, "hit_ratio") is not None]


def _end(row: ReplayRow) -> tuple[float, float] | None:
    """The largest capacity, and what misses there."""
    for capacity in reversed(_capacities(row)):
        if (found := row.estimate(capacity, "hit_ratio")) is not None:
            return float(capacity), 1.0 - found.mean
    return None


def _log_percent(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 1e-4), min(1.05, high))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if low > 0.004 else (1.0,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _look(row: ReplayRow) -> tuple[str, str | tuple[int, tuple[int, ...]]]:
    if row.label in _BESIDE:
        return _BESIDE[row.label]
    style = look(row.label)
    return style.colour, style.line
