"""The figures of a comparison. All plotting is here; it reads runs, never engines."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .numbers import share, short
from .rows import Row
from .runs import Run, Setting
from .sizes import SizePanel, size_panels
from .style import look
from .table import Table, describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MIN_REQUESTS_PER_TURN = 3
_MAX_NAME = 29
RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "hatch.linewidth": 0.6,
}


def draw_figures(table: Table, folder: Path, many: bool = False) -> list[Path]:
    """Draw every figure of ``table`` into ``folder`` as PNG; ``many``: the setting is part of the file name.

    Raises
    ------
    RunError
        If a run's Parquet file is not readable.
    OSError
        If a file cannot be written.
    """
    import matplotlib as mpl

    rows = [row for row in table.rows if row.ok and all(run.figure("latency", "ttft_s", "count") for run in row.runs)]
    if not rows:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    end = ending(table.setting) if many else ""
    bands = "; lines: mean over seeds, bands: smallest to largest" if any(len(row.runs) > 1 for row in rows) else ""
    drawn = []
    drawers: dict[str, Callable[[Sequence[Row]], Figure]] = {
        "ttft_cdf": _ttft_cdf,
        "ttft_by_turn": _ttft_by_turn,
        "reusable_tokens": _reusable_tokens,
    }
    for name, draw in drawers.items():
        path = folder / f"{name}{end}.png"
        with mpl.rc_context(RC):
            figure = draw(rows)
            caption(figure, describe(table.setting, rows) + (bands if draw is not _reusable_tokens else ""))
            figure.savefig(path, dpi=150, facecolor="white")
        drawn.append(path)
    return drawn


def draw_size_figures(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Draw TTFT against host and disk size where ``runs`` differ in them; nothing where they do not.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    import matplotlib as mpl

    panels = list(size_panels(runs))
    drawn = []
    for panel in panels:
        many = sum(other.tier == panel.tier for other in panels) > 1
        path = folder / f"ttft_by_{panel.tier}_size{ending(panel.setting) if many else ''}.png"
        folder.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(RC):
            figure = _ttft_by_size(panel)
            caption(figure, describe(panel.setting, [curve.row for curve in panel.curves]) + "; dashed: p99")
            figure.savefig(path, dpi=150, facecolor="white")
        drawn.append(path)
    return drawn


def ending(setting: Setting | str) -> str:
    """What the setting adds to a file's name."""
    return "_" + re.sub(r"[^a-z0-9]+", "-", str(setting).lower()).strip("-")


def new_figure(height: float = 4.2) -> tuple[Figure, Axes]:
    """A figure of ``height`` inches with room for names at the right and a caption below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_axes((0.09, 0.85 / height, 0.64, 1 - 1.25 / height))


def caption(figure: Figure, text: str) -> None:
    """Write ``text`` below the axes."""
    figure.text(0.02, 0.02, "\n".join(textwrap.wrap(text, 140)), fontsize=7, color="#555555", va="bottom")


def _name(row: Row) -> str:
    """The label with its marks, broken before a ``+`` or a mark where it is long."""
    marks = [" (oracle)"] * row.oracle + [" (saturated)"] * row.saturated
    lines = [""]
    for piece in [*re.split(r"(?=\+)", row.label), *marks]:
        if lines[-1] and len(lines[-1]) + len(piece) > _MAX_NAME:
            lines.append(piece.strip())
        else:
            lines[-1] += piece
    return "\n".join(lines)


def _ttft_cdf(rows: Sequence[Row]) -> Figure:
    """Share of requests whose first token came within x: mean over seeds of each quantile, and the range."""
    figure, axes = new_figure(height=max(4.2, 1.6 + 0.34 * len(rows)))
    q = np.linspace(0, 1, 401)
    curves = []
    for row in rows:
        by_seed = np.array([np.quantile(run.ttft_s(), q) for run in row.runs])  # [seeds, 401]
        curves.append(np.maximum(by_seed, 1e-6))
    for row, curve in zip(rows, curves, strict=True):
        style = look(row.system)
        axes.plot(curve.mean(axis=0), q, color=style.colour, linestyle=style.line, linewidth=1.8)
        if len(curve) > 1:
            axes.fill_betweenx(q, curve.min(axis=0), curve.max(axis=0), color=style.colour, alpha=0.18, linewidth=0)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.01)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{tick:.0%}" for tick in np.linspace(0, 1, 6)])
    _log_seconds(axes.xaxis)
    axes.set_xlabel("time to first token (log scale)")
    axes.set_title("Requests that have their first token within ...")
    _label_cdf(axes, rows, [curve.mean(axis=0) for curve in curves], q)
    return figure


def _label_cdf(axes: Axes, rows: Sequence[Row], curves: list[NDArray[np.float64]], q: NDArray[np.float64]) -> None:
    """Names at the right, in order of the medians, each tied to its curve by a thin line."""
    order = sorted(range(len(rows)), key=lambda i: -float(curves[i][len(q) // 2]))
    heights = np.linspace(0.12, 0.92, len(rows)) if len(rows) > 1 else np.array([0.5])
    for i, height in zip(order, heights, strict=True):
        row, colour = rows[i], look(rows[i].system).colour
        x = float(np.interp(height, q, curves[i]))
        axes.annotate(
            f"{_name(row)}\np50 {_seconds(float(np.interp(0.5, q, curves[i])))}",
            (x, height),
            xytext=(1.02, height),
            textcoords=("axes fraction", "data"),
            color=colour,
            va="center",
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.4, "shrinkB": 2},
        )


def _ttft_by_turn(rows: Sequence[Row]) -> Figure:
    """Median time to first token by turn: mean over seeds, and the range."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure()
    ends: list[tuple[float, float, str, str]] = []
    for row in rows:
        turns, medians = _medians_by_turn(row)  # [turns], [seeds, turns]
        if not len(turns):
            continue
        style, middle = look(row.system), medians.mean(axis=0)
        axes.plot(turns, middle, color=style.colour, linestyle=style.line, marker="o", markersize=3, linewidth=1.8)
        if len(medians) > 1:
            axes.fill_between(turns, medians.min(axis=0), medians.max(axis=0), color=style.colour, alpha=0.18, lw=0)
        ends.append((float(turns[-1]), float(middle[-1]), _name(row), style.colour))
    axes.set_ylim(0, axes.get_ylim()[1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: _seconds(value))
    axes.set_xlabel("turn of the conversation")
    axes.set_title("Median time to first token, by turn")
    label_ends(axes, ends, gap=0.075)
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


def label_ends(axes: Axes, ends: list[tuple[float, float, str, str]], gap: float) -> None:
    """Write names at the right of the ends of lines, at least ``gap`` of the axes' height apart.

    ``ends``: x and y of each end, its name and colour.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = sorted(ends, key=lambda end: end[1])
    heights = spread([float(to_axes.transform((x, y))[1]) for x, y, _, _ in ends], gap)
    for (x, y, name, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.4, "shrinkB": 2},
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """``heights`` (ascending), moved as little as needed to lie at least ``gap`` apart and, if they fit, below 1."""
    moved: list[float] = []
    for height in heights:
        moved.append(height if not moved else max(height, moved[-1] + gap))
    limit = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def _reusable_tokens(rows: Sequence[Row]) -> Figure:
    """What became of each reusable token, as shares of all of them."""
    figure, axes = new_figure(height=1.5 + 0.5 * len(rows))
    parts: list[tuple[str, tuple[str, ...], float, str]] = [
        ("device", ("reused_tokens", "device"), 1.0, ""),
        ("host", ("reused_tokens", "host"), 0.72, ""),
        ("disk", ("reused_tokens", "disk"), 0.5, ""),
        ("remote", ("reused_tokens", "remote"), 0.35, ""),
        ("recomputed", ("recomputed_tokens",), 0.0, "////"),
        ("dropped", ("dropped_tokens",), 0.0, "...."),
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
    axes.set_yticks(range(len(rows)), [_name(row) for row in rows])
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(look(row.system).colour)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{tick:.0%}" for tick in np.linspace(0, 1, 6)])
    axes.grid(False, axis="y")
    axes.set_xlabel("share of reusable tokens: reused from a tier (filled) or computed again (hatched)")
    axes.set_title("What became of the tokens that could be reused")
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


def _ttft_by_size(panel: SizePanel) -> Figure:
    """Median and p99 of the time to first token over the tokens that a tier holds, equally spaced in order."""
    figure, axes = new_figure()
    sizes = sorted({size for curve in panel.curves for size in curve.sizes})
    ends: list[tuple[float, float, str, str]] = []
    for curve in panel.curves:
        at, colour = [sizes.index(size) for size in curve.sizes], look(curve.row.system).colour
        for values_s, line in ((curve.p50_s, "-"), (curve.p99_s, "--")):
            middle = values_s.mean(axis=0)
            axes.plot(at, middle, color=colour, linestyle=line, marker="o", markersize=3, linewidth=1.8)
            if len(values_s) > 1:
                axes.fill_between(at, values_s.min(axis=0), values_s.max(axis=0), color=colour, alpha=0.18, lw=0)
        ends.append((float(at[-1]), float(curve.p50_s.mean(axis=0)[-1]), _name(curve.row), colour))
    axes.set_ylim(0, axes.get_ylim()[1])
    axes.set_xticks(range(len(sizes)), [f"{size:,}" if size else "none" for size in sizes])
    axes.yaxis.set_major_formatter(lambda value, _: _seconds(value))
    axes.set_xlabel(f"tokens that the {panel.tier} tier holds")
    axes.set_title(f"Time to first token, by the size of the {panel.tier} tier (p50, p99 dashed)")
    label_ends(axes, ends, gap=0.075)
    return figure


def _log_seconds(axis: Any) -> None:
    """Ticks such as 10 ms, 100 ms, 1 s; the steps between are named only if there is less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    few = high < 30 * low
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(lambda value, _: _seconds(value))
    axis.set_minor_formatter(NullFormatter())


def _seconds(value_s: float) -> str:
    if value_s == 0:
        return "0"
    if value_s < 1e-3:
        return f"{value_s * 1e6:.3g} us"
    return f"{value_s * 1e3:.3g} ms" if value_s < 1 else f"{value_s:.3g} s"
