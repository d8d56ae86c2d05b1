"""Improvements over a baseline, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .drawing import Picture, finish, one_each, sheet
from .figures import name_of, named
from .improvement import POINTS, Improvement, ImprovementTable
from .style import look
from .table import Metric, describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_improvements(tables: Sequence[ImprovementTable], folder: Path) -> list[Picture]:
    """Draw a figure for each of ``tables``: a panel for each metric, a line for each system.

    Raises
    ------
    OSError
        If a file cannot be written.
    """

    def picture(table: ImprovementTable, path: Path) -> Picture:
        text = f"{describe(table.setting, table.rows)}. {table.caption} Hollow: not significant, or not tested."
        return finish(_draw(table), path, f"Improvement over {table.baseline}", text, table.setting)

    return one_each(tables, folder, "improvement.svg", picture)


def _draw(table: ImprovementTable) -> Figure:
    rows, _ = named(table.rows)
    names = [name_of(row) for row in rows]
    figure = sheet(12.4, height := 1.7 + sum(0.14 + 0.16 * (name.count("\n") + 1) for name in names))
    width = 0.82 / max(1, len(table.metrics))
    for column, metric in enumerate(table.metrics):
        place = (0.17 + column * width, 0.85 / height, width - 0.022, 1 - 1.4 / height)
        axes = figure.add_axes(place)
        for i, row in enumerate(rows):
            if (one := table.found[row.label][metric.name]) is not None:
                _interval(axes, i, one, look(row.system).colour, 100.0 if metric.name == POINTS else 1.0)
        _scales(axes, metric, len(rows))
        axes.set_yticks(range(len(rows)), names if column == 0 else [""] * len(rows))
        if column == 0:
            for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
                tick.set_color(look(row.system).colour)
    return figure


def _interval(axes: Axes, y: int, one: Improvement, colour: str, factor: float) -> None:
    if one.low is not None and one.high is not None:
        axes.plot([one.low * factor, one.high * factor], [y, y], color=colour, linewidth=1.4)
    face = colour if one.significant else "white"
    axes.plot([one.value * factor], [y], marker="o", markersize=5, color=colour, markerfacecolor=face)


def _scales(axes: Axes, metric: Metric, count: int) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_ylim(count - 0.5, -0.5)
    points = metric.name == POINTS
    axes.axvline(0.0 if points else 1.0, color="#222222", linewidth=0.9)
    axes.set_title(metric.title + (" of tokens" if metric.name == "output_tokens_per_s" else ""), fontsize=9)
    axes.set_xlabel("points" if points else "times better (right)", fontsize=8)
    axes.tick_params(labelsize=8)
    if points:
        return
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.9), max(high, 1.12))
    axes.xaxis.set_major_locator(LogLocator(subs=_steps(max(high, 1.12) / min(low, 0.9))))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _steps(span: float) -> tuple[float, ...]:
    """Which parts of a decade have a tick on an axis from 1 to ``span`` times 1."""
    if span < 1.7:
        return 1.0, 1.2, 1.4, 7.0, 8.0, 9.0
    if span < 4:
        return 1.0, 1.5, 2.0, 3.0, 5.0, 7.0
    return (1.0, 2.0, 5.0) if span < 30 else (1.0,)
