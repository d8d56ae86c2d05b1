"""Tokens per second of one user against tokens per second of one device: what a system can trade for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .drawing import MOST_CURVES, OTHERS, Picture, broken, finish, label_ends, new_figure, one_each, tall
from .figures import drawable
from .rows import Row
from .runs import Run, Setting
from .style import look
from .table import Table, describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Point:
    """A row of a table, means over seeds. ``per_user``: 1 / median TPOT; ``per_device``: output tokens per second."""

    per_user: float
    per_device: float


@dataclass(frozen=True, slots=True)
class Trade:
    """All settings of one workload, model and hardware: the points of each system, and which rows they are of."""

    setting: Setting
    points: dict[str, tuple[Point, ...]]
    rows: tuple[Row, ...]


def devices(run: Run) -> int | None:
    """How many the run's hardware has, as it was configured; None where nobody says."""
    count = run.config().get("hardware", {}).get("devices")
    return count if isinstance(count, int) and count > 0 else None


def trades(tables: Sequence[Table]) -> list[Trade]:
    """A trade for each workload, model and hardware with at least two points."""
    groups: dict[Setting, list[tuple[Row, Point]]] = {}
    for table in tables:
        rows = drawable(table.rows)
        count = devices(rows[0].runs[0]) if rows else None
        if count is not None:
            found = groups.setdefault(replace(table.setting, knobs=""), [])
            found += [(row, point) for row in rows if (point := _point(row, count)) is not None]
    return [_trade(setting, found) for setting, found in groups.items() if len(found) > 1]


def _point(row: Row, count: int) -> Point | None:
    tpot, speed = row.estimate(("latency", "tpot_s", "p50")), row.estimate(("throughput", "output_tokens_per_s"))
    if tpot is None or speed is None or tpot.mean <= 0:
        return None
    return Point(1 / tpot.mean, speed.mean / count)


def _trade(setting: Setting, found: Sequence[tuple[Row, Point]]) -> Trade:
    points: dict[str, list[Point]] = {}
    rows: dict[str, Row] = {}
    for row, point in found:
        points.setdefault(row.system, []).append(point)
        rows.setdefault(row.system, replace(row, label=row.system))
    return Trade(setting, {label: tuple(own) for label, own in points.items()}, tuple(rows.values()))


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both, by rising ``per_user``."""
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (-one.per_user, -one.per_device)):
        if not best or point.per_device > best[-1].per_device:
            best.append(point)
    return best[::-1]


def draw_trades(found: Sequence[Trade], folder: Path) -> list[Picture]:
    """Draw a figure for each trade.

    Raises
    ------
    OSError
        If a file cannot be written.
    """

    def picture(trade: Trade, path: Path) -> Picture:
        what = "Per user: 1 / median TPOT. Per GPU: output tokens per second of the run / its devices."
        text = f"{describe(trade.setting, trade.rows)}. {what} Lines: what no other point of the system beats in both."
        return finish(_draw(trade), path, "Tokens per second: per user and per GPU", text, trade.setting)

    return one_each(found, folder, "pareto.svg", picture)


def _draw(trade: Trade) -> Figure:
    order = sorted(trade.points, key=lambda label: -max(one.per_device for one in trade.points[label]))
    names = {label: broken(label) for label in order}
    shown = order[:MOST_CURVES]
    figure, axes = new_figure(tall([names[label] for label in shown]))
    for label in order[MOST_CURVES:]:
        own = trade.points[label]
        xy = [one.per_user for one in own], [one.per_device for one in own]
        axes.plot(*xy, color=OTHERS, linestyle="", marker=".", markersize=3)
    ends = [_system(axes, label, names[label], trade.points[label]) for label in shown]
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens per second of one user (faster replies to the right)")
    axes.set_title(
        "Tokens per second of one GPU"
        + (f" (grey: {len(order) - len(shown)} others)" if len(order) > len(shown) else "")
    )
    label_ends(axes, ends)
    return figure


def _system(axes: Axes, label: str, name: str, points: Sequence[Point]) -> tuple[float, float, str, str]:
    style, edge = look(label), front(points)
    x, y = np.array([one.per_user for one in points]), np.array([one.per_device for one in points])
    axes.plot(x, y, linestyle="", marker="o", markersize=4, color=style.colour, alpha=0.55, markeredgewidth=0)
    steps = [one.per_user for one in edge], [one.per_device for one in edge]
    axes.plot(*steps, color=style.colour, linestyle=style.line, linewidth=1.6, marker="o", markersize=4.5)
    return float(edge[-1].per_user), float(edge[-1].per_device), name, style.colour
