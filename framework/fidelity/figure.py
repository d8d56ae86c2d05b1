"""The figures of a comparison: real against simulated, system by system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..report.drawing import RC
from ..report.style import look
from .compare import METRICS, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_fidelity(rows: Sequence[Row], about: str, path: Path) -> Path:
    """Draw the PNG ``path``: each system's real runs as points, the simulated one as a bar.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(metric, statistic) for statistic in ("mean", "p99") for _, metric in METRICS]
    with mpl.rc_context(RC):
        figure = Figure(figsize=(11, 6.5), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (metric, statistic) in zip(figure.subplots(2, 3).flat, panels, strict=True):
            _panel(axes, [row for row in rows if (row.metric, row.statistic) == (metric, statistic)])
            axes.set_title(f"{metric}, {statistic}")
        figure.suptitle(f"{about}; points: real runs, bar: simulated, band: the goal", fontsize=8, x=0.01, ha="left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return path


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    for i, row in enumerate(rows):
        colour = look(row.system).colour
        low, high = (1e3 * row.centre * (1 + sign * row.goal) for sign in (-1, 1))
        axes.fill_between([i - 0.35, i + 0.35], low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot([i] * len(row.real), [1e3 * value for value in row.real], "o", color=colour, markersize=4, alpha=0.8)
        axes.plot([i - 0.35, i + 0.35], [1e3 * row.simulated] * 2, color="black", linewidth=1.6)
    axes.set_xticks(range(len(rows)), [row.system for row in rows], rotation=30, ha="right", fontsize=8)
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
