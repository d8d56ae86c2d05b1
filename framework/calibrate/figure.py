"""The figure of a calibration: the operators' times, and the tables on trial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..execution.tables import Grid, OperatorTables
from ..report.drawing import RC
from .checks import Check

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_calibration(tables: OperatorTables, checks: Sequence[Check], path: Path) -> Path:
    """Draw the PNG ``path``.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(9, 6.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 2)
        _curves(axes[0, 0], tables)
        _grid(axes[0, 1], tables.attention.prefill, 1, "prefill attention", "queries", "{:.0f} before")
        _grid(axes[1, 0], tables.attention.decode, 0, "decode attention", "keys of each sequence", "{:.0f} seq.")
        _trial(axes[1, 1], checks)
        figure.suptitle(tables.source, fontsize=8, x=0.01, ha="left", wrap=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return path


def _curves(axes: Axes, tables: OperatorTables) -> None:
    for name, curve in (("dense layers, by tokens", tables.dense), ("head, by sampled rows", tables.head)):
        if curve is not None:
            axes.plot(curve.x, 1e3 * curve.seconds, marker=".", label=name)
    _dress(axes, "all but attention", "tokens or rows")
    axes.legend(frameon=False)


def _grid(axes: Axes, grid: Grid | None, lines: int, title: str, x: str, label: str) -> None:
    """One line for each value of the axis ``lines``, over the other."""
    if grid is None:
        return
    for i, value in enumerate(grid.axes[lines]):
        seconds = np.take(grid.seconds, i, axis=lines)
        at = grid.axes[1 - lines]
        seen = seconds > 1e-6
        if seen.any():  # the rest is lost in the noise
            axes.plot(at[seen], 1e3 * seconds[seen], marker=".")
            axes.annotate(label.format(value), (at[seen][-1], 1e3 * seconds[seen][-1]), fontsize=7)
    _dress(axes, title, x)


def _trial(axes: Axes, checks: Sequence[Check]) -> None:
    measured = [1e3 * check.measured_s for check in checks]
    axes.plot(measured, [1e3 * check.simulated_s for check in checks], ".", color="#d55e00")
    ends = [min(measured, default=0.0), max(measured, default=1.0)]
    axes.plot(ends, ends, color="#7f7f7f", linewidth=0.8)
    axes.set_title("mixed batches, in no table")
    axes.set_xlabel("measured, ms")
    axes.set_ylabel("simulated, ms")


def _dress(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel("ms an iteration")
    if axes.has_data():
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
