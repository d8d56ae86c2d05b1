"""The figures of one setting. Like all plotting they read runs, never engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .drawing import (
    MOST_CURVES,
    OTHERS,
    RC,
    Picture,
    broken,
    ending,
    finish,
    label_ends,
    lead,
    log_seconds,
    new_figure,
    room,
    seconds,
    spread,
    tall,
)
from .numbers import share, short
from .rows import Row
from .style import look
from .table import Table, describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEDIAN = ("latency", "ttft_s", "p50")
_MIN_REQUESTS_PER_TURN = 3
_TITLES = {
    "ttft_cdf": "Time to first token: share of requests",
    "ttft_by_turn": "Time to first token by turn",
    "reusable_tokens": "What became of reusable tokens",
}


def drawable(rows: Sequence[Row]) -> list[Row]:
    """Those of ``rows`` all of whose runs came to their end and served something."""
    return [row for row in rows if row.ok and all(run.figure("latency", "ttft_s", "count") for run in row.runs)]


def draw_figures(table: Table, folder: Path, many: bool = False) -> list[Picture]:
    """Draw every figure of ``table`` into ``folder``; ``many``: the setting is part of the file name.

    Raises
    ------
    RunError
        If a run's Parquet file is not readable.
    OSError
        If a file cannot be written.
    """
    import matplotlib as mpl

    rows = drawable(table.rows)
    if not rows:
        return []
    end = ending(table.setting) if many else ""
    bands = "; lines: mean over seeds, bands: smallest to largest" if any(len(row.runs) > 1 for row in rows) else ""
    drawn = []
    drawers: dict[str, Callable[[Sequence[Row]], Figure]] = {
        "ttft_cdf": _ttft_cdf,
        "ttft_by_turn": _ttft_by_turn,
        "reusable_tokens": _reusable_tokens,
    }
    for name, draw in drawers.items():
        with mpl.rc_context(RC):
            text = describe(table.setting, rows) + (bands if draw is not _reusable_tokens else "")
            path = folder / f"{name}{end}.png"
            drawn.append(finish(draw(rows), path, _TITLES[name], text, table.setting))
    return drawn


def name_of(row: Row) -> str:
    """The label with its marks, broken where it is long."""
    return broken(row.label, *["oracle"] * row.oracle, *["saturated"] * row.saturated)


def named(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows that get a colour and a name, and the others: those with a higher median time to first token."""
    order = sorted(rows, key=lambda row: [found.mean for found in [row.estimate(MEDIAN)] if found is not None])
    best = {row.label for row in order[:MOST_CURVES]}
    return [row for row in rows if row.label in best], [row for row in rows if row.label not in best]


def _ttft_cdf(rows: Sequence[Row]) -> Figure:
    """Share of requests whose first token came within x: mean over seeds of each quantile, and the range."""
    shown, others = named(rows)
    q = np.linspace(0, 1, 201)
    curves = {row.label: _quantiles(row, q) for row in rows}  # [seeds, 201]
    labels = [_cdf_label(row, curves[row.label]) for row in shown]
    figure, axes = new_figure(tall([*labels, ""] if others else labels))
    for row in others:
        axes.plot(curves[row.label].mean(axis=0), q, color=OTHERS, linewidth=0.8, alpha=0.5)
    for row in shown:
        style, curve = look(row.system), curves[row.label]
        axes.plot(curve.mean(axis=0), q, color=style.colour, linestyle=style.line, linewidth=1.8)
        if len(curve) > 1:
            axes.fill_betweenx(q, curve.min(axis=0), curve.max(axis=0), color=style.colour, alpha=0.18, linewidth=0)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.01)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{tick:.0%}" for tick in np.linspace(0, 1, 6)])
    log_seconds(axes.xaxis)
    axes.set_xlabel("time to first token (log scale)")
    axes.set_title("Requests that have their first token within ...")
    _label_cdf(axes, shown, labels, [curves[row.label].mean(axis=0) for row in shown], q)
    if others:
        axes.text(1.05, 0.0, beside(others), color=OTHERS, fontsize=8.5, va="center", transform=axes.transAxes)
    return figure


def beside(others: Sequence[Row]) -> str:
    """The name of all that have none."""
    return f"grey: {len(others)} others"


def _quantiles(row: Row, q: NDArray[np.float64]) -> NDArray[np.float64]:
    by_run = np.array([np.quantile(run.ttft_s(), q) for run in row.runs], np.float64)
    return np.asarray(np.maximum(by_run, 1e-6), np.float64)


def _cdf_label(row: Row, curve: NDArray[np.float64]) -> str:
    name, median = name_of(row), f"p50 {seconds(float(curve.mean(axis=0)[curve.shape[1] // 2]))}"
    return f"{name}  {median}" if len(name.splitlines()[-1]) + len(median) < 30 else f"{name}\n{median}"


def _label_cdf(
    axes: Axes,
    rows: Sequence[Row],
    labels: Sequence[str],
    curves: list[NDArray[np.float64]],
    q: NDArray[np.float64],
) -> None:
    """Names at the right, in order of the medians, each tied to its curve by a thin line."""
    order = sorted(range(len(rows)), key=lambda i: -float(curves[i][len(q) // 2]))
    gaps = room(axes, [labels[i] for i in order])
    free = max(0.0, 0.86 - sum(gaps))
    gaps = [gap + min(0.12, free / max(1, len(gaps))) for gap in gaps]
    heights = spread([0.12 if len(rows) > 1 else 0.5] * len(rows), gaps)
    for i, height in zip(order, heights, strict=True):
        x = float(np.interp(height, q, curves[i]))
        lead(axes, (x, height), height, labels[i], look(rows[i].system).colour)


def _ttft_by_turn(rows: Sequence[Row]) -> Figure:
    """Median time to first token by turn: mean over seeds, and the range."""
    from matplotlib.ticker import MaxNLocator

    shown, others = named(rows)
    figure, axes = new_figure(tall([name_of(row) for row in shown]))
    ends: list[tuple[float, float, str, str]] = []
    for row in [*others, *shown]:
        turns, medians = _medians_by_turn(row)  # [turns], [seeds, turns]
        if not len(turns):
            continue
        style, middle = look(row.system), medians.mean(axis=0)
        if row in others:
            axes.plot(turns, middle, color=OTHERS, linewidth=0.8, alpha=0.5)
            continue
        axes.plot(turns, middle, color=style.colour, linestyle=style.line, marker="o", markersize=3, linewidth=1.8)
        if len(medians) > 1:
            axes.fill_between(turns, medians.min(axis=0), medians.max(axis=0), color=style.colour, alpha=0.18, lw=0)
        ends.append((float(turns[-1]), float(middle[-1]), name_of(row), style.colour))
    axes.set_ylim(0, axes.get_ylim()[1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: seconds(value))
    axes.set_xlabel("turn of the conversation" + (f" ({beside(others)})" if others else ""))
    axes.set_title("Median time to first token, by turn")
    label_ends(axes, ends)
    return figure


def _medians_by_turn(row: Row) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Turns that every seed has served often enough, counted from 1, and their medians [seeds, turns]."""
    by_seed: list[dict[int, float]] = []
    for run in row.runs:
        columns = run.requests(["turn", "arrival_s", "first_token_s"])
        ttft_s = columns["first_token_s"] - columns["arrival_s"]
        turns, counts = np.unique(columns["turn"], return_counts=True)
        often = turns[counts >= _MIN_REQUESTS_PER_TURN]
        by_seed.append({int(turn): float(np.median(ttft_s[columns["turn"] == turn])) for turn in often})
    common = sorted(set.intersection(*(set(found) for found in by_seed)))
    medians = np.array([[found[turn] for turn in common] for found in by_seed])
    return np.array(common, np.int64) + 1, medians


def _reusable_tokens(rows: Sequence[Row]) -> Figure:
    """What became of each reusable token, as shares of all of them."""
    rows, others = named(rows)
    names = [name_of(row) for row in rows]
    figure, axes = new_figure(height=1.5 + sum(0.3 + 0.16 * (name.count("\n") + 1) for name in names))
    parts: list[tuple[str, tuple[str, ...], float, str]] = [
        ("device", ("reused_tokens", "device"), 1.0, ""),
        ("host", ("reused_tokens", "host"), 0.72, ""),
        ("disk", ("reused_tokens", "disk"), 0.5, ""),
        ("remote", ("reused_tokens", "remote"), 0.35, ""),
        ("recomputed", ("recomputed_tokens",), 0.0, "//"),
        ("dropped", ("dropped_tokens",), 0.0, "xx"),
    ]
    for i, row in enumerate(rows):
        colour, left = look(row.system).colour, 0.0
        sums = [sum(run.figure("cache", *path) or 0.0 for run in row.runs) for _, path, _, _ in parts]
        total = sum(sums)
        for (name, _, alpha, hatch), tokens in zip(parts, sums, strict=True):
            width = tokens / total if total else 0.0
            _bar(axes, i, left, width, name, colour, alpha, hatch)
            left += width
        axes.text(1.01, i, f"{short(total / len(row.runs))} tokens", va="center", fontsize=8, color="#555555")
    axes.set_yticks(range(len(rows)), names)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(look(row.system).colour)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{tick:.0%}" for tick in np.linspace(0, 1, 6)])
    axes.grid(False, axis="y")
    axes.set_xlabel("share of reusable tokens: reused from a tier (filled) or computed again (hatched)")
    left_out = f" ({len(others)} more in the table)" if others else ""
    axes.set_title(f"What became of the tokens that could be reused{left_out}")
    box = axes.get_position()
    axes.set_position((0.27, box.y0, 0.59, box.height))
    return figure


def _bar(axes: Axes, y: int, left: float, width: float, name: str, colour: str, alpha: float, hatch: str) -> None:
    from matplotlib.colors import to_rgba

    if width <= 0:
        return
    axes.barh(y, width, 0.62, left, facecolor=to_rgba(colour, alpha), edgecolor=colour, hatch=hatch, linewidth=0.8)
    if width > 0.07:
        text = f"{name} {share(width)}" if width > 0.2 else share(width)
        plain: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2} if hatch else None
        axes.text(left + width / 2, y, text, color="white" if alpha > 0.6 else "#222222", bbox=box, **plain)
