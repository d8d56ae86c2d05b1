"""Quality against the bytes that are kept: one panel per task, less memory to the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..quality.intervals import Interval
from .drawing import RC, Picture, ending, finish, spread
from .quality import ALL, FULL, RANDOM, TEXT, QualityRow, QualityTable
from .style import look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS, _PANEL, _LABELS = 2, (3.4, 2.75), 1.45  # panels beside each other, inches of one, inches for names
_TITLES = {
    "quality_accuracy": "Quality against budget: right answers",
    "quality_kl": "Quality against budget: divergence from the full cache",
    "quality_attention": "Quality against budget: attention",
}
_NOTHING = 1e-3  # nats: not worth a decade of the axis
_MARGINS = (0.75, 0.62, 0.5, 0.85)  # left, between panels and above each, top, bottom


@dataclass(frozen=True, slots=True)
class _Panel:
    """``measure`` of ``task``; ``share``: as a percentage; ``log``: the axis is logarithmic."""

    task: str
    measure: str
    title: str
    share: bool = False
    log: bool = False


def draw_quality(tables: Sequence[QualityTable], folder: Path) -> list[Picture]:
    """Draw accuracy, divergence and attention over the bytes kept, for each table with several budgets.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    drawn = []
    shown = [table for table in tables if len(table.budgets) > 1]
    for table in shown:
        end = ending(str(table.setting)) if len(shown) > 1 else ""
        for name, panels in _figures(table).items():
            drawn.append(_draw(table, panels, folder / f"{name}{end}.png"))
    return drawn


def _figures(table: QualityTable) -> dict[str, list[_Panel]]:
    """The figures' panels: those of which something was measured."""
    text = [_Panel(TEXT, "bits_per_token", "running text: bits per token")] if TEXT in table.tasks else []
    asked = [task for task in table.tasks if task != TEXT]
    whole = ALL if asked else TEXT
    figures = {
        "quality_accuracy": [
            *(_Panel(task, "accuracy", f"{task}: {table.metric(task) or 'exact match'}", share=True) for task in asked),
            *text,
        ],
        "quality_kl": [
            _Panel(task, "kl_nats", f"{task}: KL to the full cache, nats", log=True) for task in table.tasks
        ],
        "quality_attention": [
            _Panel(whole, "attention_error", "error of attention's output", share=True),
            _Panel(whole, "recall", "recall of the keys that get most attention", share=True),
        ],
    }
    kept = {name: [p for p in panels if _measured(table, p)] for name, panels in figures.items()}
    return {name: panels for name, panels in kept.items() if panels}


def _measured(table: QualityTable, panel: _Panel) -> bool:
    return any(row.label != FULL and row.interval(panel.task, panel.measure) is not None for row in table.rows)


def _draw(table: QualityTable, panels: Sequence[_Panel], path: Path) -> Picture:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    tall = max(_PANEL[1], 0.6 + 0.155 * len(table.labels))
    left, gap, top, bottom = _MARGINS
    width = columns * (left + _PANEL[0] + _LABELS)
    height = top + bottom + lines * tall + (lines - 1) * gap
    with mpl.rc_context(RC):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        for i, panel in enumerate(panels):
            x = (i % columns) * (left + _PANEL[0] + _LABELS) + left
            y = height - top - (i // columns) * (tall + gap) - tall
            axes = figure.add_axes((x / width, y / height, _PANEL[0] / width, tall / height))
            _panel(axes, table, panel, last=i >= len(panels) - columns)
        floor = f" Less than {_NOTHING:g} nats is drawn there." if panels[0].log else ""
        bands = f"Bands: 95 % intervals over episodes and seeds.{floor}"
        text = f"{table.setting}. {table.caption}. {bands}"
        return finish(figure, path, _TITLES[next(n for n in _TITLES if path.stem.startswith(n))], text, table.setting)


@dataclass(frozen=True, slots=True)
class _Line:
    """One policy in a panel: points by falling share of the bytes, with their intervals."""

    label: str
    name: str
    oracle: bool
    share: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def _panel(axes: Axes, table: QualityTable, panel: _Panel, last: bool) -> None:
    full = _full(table, panel)
    names = _short_names(table.labels)
    lines = [_line(table.of(label), names[label], panel, full) for label in table.labels if label != FULL]
    lines = [line for line in lines if line.share]
    for line in lines:
        _curve(axes, line)
    if full is not None and panel.measure in ("accuracy", "bits_per_token"):
        axes.axhline(full, color="#777777", linestyle=(0, (1, 1)), linewidth=1.2, zorder=1)
        lines.append(_Line(FULL, FULL, False, [min(table.budgets)] * 2, *[[full] * 2] * 3))
    _scales(axes, table, panel, [line for line in lines if line.label != FULL])
    _name_ends(axes, [line for line in lines if len(line.share) > 1])
    axes.set_title(panel.title, fontsize=9)
    if last:
        axes.set_xlabel("bytes kept, share of the full cache (less to the right)", fontsize=8)


def _full(table: QualityTable, panel: _Panel) -> float | None:
    """What a policy that keeps everything has; None where it cannot be drawn, or is not known."""
    whole = table.row(FULL, None)
    found = None if whole is None else whole.interval(panel.task, panel.measure)
    known = {"recall": 1.0, "attention_error": 0.0}
    return known.get(panel.measure) if found is None else found.mean


def _short_names(labels: Sequence[str]) -> dict[str, str]:
    """Policies without their knobs, where that tells them apart; the tables have the knobs."""
    first = [label.split(" ")[0] for label in labels]
    return {label: name if first.count(name) == 1 else label for label, name in zip(labels, first, strict=True)}


def _line(rows: Sequence[QualityRow], name: str, panel: _Panel, full: float | None) -> _Line:
    points = []
    for row in rows:
        share, found = row.interval(panel.task, "kv_share"), row.interval(panel.task, panel.measure)
        if share is not None and found is not None:
            points.append((share.mean, found))
    points.sort(key=lambda point: -point[0])
    if full is not None and len(points) > 1 and points[0][0] < 0.95:
        points.insert(0, (1.0, Interval(full, None, None, 0)))
    means = [found.mean for _, found in points]
    low = [found.mean if found.low is None else found.low for _, found in points]
    high = [found.mean if found.high is None else found.high for _, found in points]
    floor = _NOTHING if panel.log else -np.inf
    bounded = ([max(value, floor) for value in values] for values in (means, low, high))
    return _Line(rows[0].label, name, rows[0].oracle, [share for share, _ in points], *bounded)


def _curve(axes: Axes, line: _Line) -> None:
    """Draw one policy; a single point has its name beside it."""
    colour, style = _look(line.label, line.oracle)
    axes.plot(line.share, line.mean, color=colour, linestyle=style, marker="o", markersize=2.6, linewidth=1.5)
    if len(line.share) > 1:
        axes.fill_between(line.share, line.low, line.high, color=colour, alpha=0.10, linewidth=0)
        return
    axes.vlines(line.share, line.low, line.high, color=colour, linewidth=1.0)
    place = (line.share[0], line.mean[0])
    axes.annotate(line.name, place, (4, 3), textcoords="offset points", color=colour, fontsize=7.5)


def _name_ends(axes: Axes, lines: Sequence[_Line]) -> None:
    """Names at the right of where lines end, those of equal ends by the whole of the line; a thin line leads to an end
    that is not far."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((line.share[-1], line.mean[-1])) for line in lines]
    order = sorted(range(len(lines)), key=lambda i: (round(float(ends[i][1]), 2), float(np.mean(lines[i].mean))))
    gap = min(0.07, 1.0 / max(1, len(lines)))
    heights = spread([max(0.0, float(ends[i][1])) for i in order], gap)
    for i, height in zip(order, heights, strict=True):
        line, near = lines[i], abs(heights[order.index(i)] - float(ends[i][1])) < 2 * gap
        colour = "#777777" if line.label == FULL else _look(line.label, line.oracle)[0]
        lead = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.4, "shrinkB": 2} if near else None
        axes.annotate(
            f"{line.name} (oracle)" if line.oracle else line.name,
            (float(ends[i][0]), float(ends[i][1])),
            xytext=(1.03, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontsize=8,
            arrowprops=lead,
            annotation_clip=False,
        )


def _look(label: str, oracle: bool) -> tuple[str, str | tuple[int, tuple[int, ...]]]:
    if oracle:
        return "#111111", "--"
    if label == RANDOM:
        return "#8a8a8a", "-."
    style = look(label.split(" ")[0])
    return style.colour, style.line


def _scales(axes: Axes, table: QualityTable, panel: _Panel, lines: Sequence[_Line]) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xscale("log")
    named = [*table.budgets, *([] if 1.0 in table.budgets else [1.0])]
    ticks = [budget for budget in named if _apart(budget, named)]
    axes.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(1.08, min([table.budgets[0], *(line.share[-1] for line in lines)]) / 1.08)
    axes.tick_params(labelsize=8)
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(_NOTHING * 0.8)
        return
    if panel.share:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    low, high = axes.get_ylim()
    axes.set_ylim(0.0 if low < 0.4 * high else low, max(high, 1.03) if panel.share and high <= 1.1 else high)


def _apart(budget: float, budgets: Sequence[float]) -> bool:
    """Far enough from the next larger one that is named for both names to be read."""
    larger = [other for other in budgets if other > budget]
    return not larger or min(larger) / budget > 1.25 or not _apart(min(larger), budgets)
