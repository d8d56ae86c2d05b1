"""Throughput-latency curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .drawing import MOST_CURVES, OTHERS, Picture, finish, log_seconds, names_beside, one_each, sheet, tall
from .figures import name_of
from .ladder import Climber, Ladder, Rung
from .style import look
from .table import describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LATENCIES = (
    ("TTFT p50", ("latency", "ttft_s", "p50"), True),
    ("TTFT p99", ("latency", "ttft_s", "p99"), True),
    ("normalized latency (mean)", ("latency", "normalized_s_per_token", "mean"), False),
)
_SPEED = ("throughput", "output_tokens_per_s")


def draw_ladders(ladders: Sequence[Ladder], folder: Path) -> list[Picture]:
    """Draw latency over the rate and over the tokens per second, a figure for each of ``ladders``.

    Raises
    ------
    OSError
        If a file cannot be written.
    """

    def picture(ladder: Ladder, path: Path) -> Picture:
        slo = " Dashed line: the limit of good service (task.slo.ttft_s)." if ladder.slo_ttft_s else ""
        about = describe(ladder.setting, [climber.row for climber in ladder.climbers])
        text = f"{about}; lines: mean over seeds, bands: smallest to largest. Hollow: saturated.{slo}"
        return finish(_draw(ladder), path, "Latency by rate and by throughput", text, ladder.setting)

    return one_each(ladders, folder, "throughput_latency.svg", picture)


def _draw(ladder: Ladder) -> Figure:
    shown, others = _named(ladder)
    names = [name_of(climber.row) for climber in shown] + ([f"grey: {len(others)} others"] if others else [])
    figure = sheet(12.4, height := tall(names, least=6.8))
    panel = (height - 2.35) / 2
    for line in range(2):
        for column, (title, path, limited) in enumerate(_LATENCIES):
            place = (0.06 + 0.29 * column, (0.85 + (1 - line) * (panel + 0.95)) / height, 0.22, panel / height)
            axes = figure.add_axes(place)
            for climber in [*others, *shown]:
                _curve(axes, climber, path, by_speed=line == 1, grey=climber in others)
            _scales(axes, ladder.slo_ttft_s if limited else None, by_speed=line == 1)
            axes.set_title(title)
    colours = [look(climber.row.system).colour for climber in shown] + ([OTHERS] if others else [])
    names_beside(figure, 0.885, list(zip(names, colours, strict=True)))
    return figure


def _named(ladder: Ladder) -> tuple[list[Climber], list[Climber]]:
    """The systems that get a colour: those with the most tokens per second at any rate."""
    order = sorted(ladder.climbers, key=lambda climber: -max(float(_mean(rung, _SPEED)) for rung in climber.rungs))
    best = {climber.row.label for climber in order[:MOST_CURVES]}
    one = [climber for climber in ladder.climbers if climber.row.label in best]
    return one, [climber for climber in ladder.climbers if climber.row.label not in best]


def _mean(rung: Rung, path: Sequence[str]) -> float:
    values = rung.values(*path)
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def _curve(axes: Axes, climber: Climber, path: Sequence[str], by_speed: bool, grey: bool) -> None:
    x = np.array([_mean(rung, _SPEED) if by_speed else rung.rate for rung in climber.rungs])
    y = np.array([_mean(rung, path) for rung in climber.rungs])
    if grey:
        axes.plot(x, y, color=OTHERS, linewidth=0.8, alpha=0.5)
        return
    style = look(climber.row.system)
    axes.plot(x, y, color=style.colour, linestyle=style.line, linewidth=1.6)
    full = np.array([not rung.saturated for rung in climber.rungs])
    for mask, face in ((full, style.colour), (~full, "white")):
        axes.plot(x[mask], y[mask], linestyle="", marker="o", markersize=4, color=style.colour, markerfacecolor=face)
    if not by_speed and max(len(rung.runs) for rung in climber.rungs) > 1:
        low, high = (_edge(climber, path, edge) for edge in (np.nanmin, np.nanmax))
        axes.fill_between(x, low, high, color=style.colour, alpha=0.1, linewidth=0)


def _edge(climber: Climber, path: Sequence[str], edge: Callable[..., Any]) -> NDArray[np.float64]:
    rows = (rung.values(*path) for rung in climber.rungs)
    return np.array([edge(row) if np.isfinite(row).any() else np.nan for row in rows], np.float64)


def _scales(axes: Axes, limit_s: float | None, by_speed: bool) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if limit_s is not None and low / 3 < limit_s < high * 10:
        axes.axhline(limit_s, color="#222222", linestyle=(0, (4, 3)), linewidth=1.1)
        place: Any = ((0.02, limit_s), (0, -11), ("axes fraction", "data"), "offset points")
        axes.annotate(f"SLO {limit_s:g} s", *place, fontsize=8)
    log_seconds(axes.yaxis)
    axes.set_xlim(left=0)
    axes.set_xlabel("output tokens per second" if by_speed else "new conversations per second")
