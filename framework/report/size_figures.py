"""Latency and hits over the size of a tier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .drawing import RC, Picture, ending, finish, label_ends, seconds, sheet, tall
from .figures import name_of
from .runs import Run
from .sizes import SizeCurve, SizePanel, size_panels
from .style import look
from .table import describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


End = tuple[float, float, str, str]  # x, y, name, colour


def draw_size_figures(runs: Sequence[Run], folder: Path) -> list[Picture]:
    """Draw TTFT and hits against the sizes of tiers where ``runs`` differ in them; nothing where they do not.

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
        end = ending(panel.setting) if many else ""
        about = describe(panel.setting, [curve.row for curve in panel.curves])
        with mpl.rc_context(RC):
            path = folder / f"ttft_by_{panel.tier}_size{end}.png"
            title = f"Time to first token by the size of the {panel.tier} tier"
            drawn.append(finish(_ttft(panel), path, title, f"{about}; dashed: p99", panel.setting))
            if any(np.isfinite(curve.hits).any() for curve in panel.curves):
                path = folder / f"hits_by_{panel.tier}_size{end}.svg"
                text = f"{about}. Infinite cache: one that never evicts reuses every reusable token."
                title = f"Hits and misses by the size of the {panel.tier} tier"
                drawn.append(finish(_hits(panel), path, title, text, panel.setting))
    return drawn


def _ttft(panel: SizePanel) -> Figure:
    """Median and p99 of the time to first token over the tokens that a tier holds, equally spaced in order."""
    figure = sheet(8.2, height := tall([name_of(curve.row) for curve in panel.curves]))
    axes = figure.add_axes((0.09, 0.85 / height, 0.64, 1 - 1.25 / height))
    ends = _curves(axes, panel, [("p50_s", "-"), ("p99_s", "--")])
    axes.set_ylim(0, axes.get_ylim()[1])
    label_ends(axes, ends)
    axes.yaxis.set_major_formatter(lambda value, _: seconds(value))
    axes.set_title(f"Time to first token, by the size of the {panel.tier} tier (p50, p99 dashed)")
    return figure


def _hits(panel: SizePanel) -> Figure:
    """Hit ratio, and the same as misses on a logarithmic axis, where good caches can be told apart."""
    figure = sheet(11, height := tall([name_of(curve.row) for curve in panel.curves]))
    boxes = [(left, 0.85 / height, 0.34, 1 - 1.25 / height) for left in (0.06, 0.46)]
    hits, misses = (figure.add_axes(box) for box in boxes)
    _curves(hits, panel, [("hits", "-")])
    ends = _curves(misses, panel, [("misses", "-")])
    hits.axhline(1.0, color="#777777", linestyle=":", linewidth=1.4)
    hits.annotate("infinite cache", (0.02, 1.0), (0, 3), ("axes fraction", "data"), "offset points", color="#777777")
    hits.set_ylim(0, 1.08)
    misses.set_yscale("log")
    label_ends(misses, ends)
    for axes in (hits, misses):
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    hits.set_title("Reusable tokens that hit")
    misses.set_title("... that miss (log scale)")
    return figure


def _curves(axes: Axes, panel: SizePanel, measures: Sequence[tuple[str, str]]) -> list[End]:
    """Draw them, and return their ends."""
    sizes = sorted({size for curve in panel.curves for size in curve.sizes})
    ends: list[End] = []
    for curve in panel.curves:
        at, colour = [sizes.index(size) for size in curve.sizes], look(curve.row.system).colour
        for measure, line in measures:
            values: NDArray[np.float64] = getattr(curve, measure)
            middle = values.mean(axis=0)
            axes.plot(at, middle, color=colour, linestyle=line, marker="o", markersize=3, linewidth=1.8)
            if len(values) > 1:
                axes.fill_between(at, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, lw=0)
        ends.append((float(at[-1]), _end(curve, measures[0][0]), name_of(curve.row), colour))
    axes.set_xticks(range(len(sizes)), [f"{size:,}" if size else "none" for size in sizes])
    axes.set_xlabel(f"tokens that the {panel.tier} tier holds")
    return [end for end in ends if np.isfinite(end[1])]


def _end(curve: SizeCurve, measure: str) -> float:
    return float(getattr(curve, measure).mean(axis=0)[-1])
