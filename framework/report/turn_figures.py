"""Tokens reused by tier over the turns of conversations: a panel for each system."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .drawing import RC, Picture, ending, finish
from .figures import drawable, name_of, named
from .grids import panels
from .rows import Row
from .style import look
from .table import Table, describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {
    "reused_device": ("from the device", "#0072b2", ""),
    "reused_host": ("from the host", "#e6b800", ""),
    "reused_disk": ("from disk", "#009e73", ""),
    "reused_remote": ("from remote", "#cc79a7", ""),
    "recomputed": ("computed again", "#d55e00", "//"),
    "dropped": ("dropped", "#8a8a8a", "xx"),
}
_MIN_REQUESTS = 3


def by_turn(row: Row) -> tuple[NDArray[np.int64], Mapping[str, NDArray[np.float64]]]:
    """Turns with enough requests over all seeds, counted from 1 [t], and the mean tokens of a request in each part [t].

    Raises
    ------
    RunError
        If a run's requests are not readable.
    """
    columns = [run.requests(["turn", *LOOKS]) for run in row.runs]
    whole = {name: np.concatenate([one[name] for one in columns]) for name in ("turn", *LOOKS)}
    turns, places, counts = np.unique(whole["turn"], return_inverse=True, return_counts=True)
    often = counts >= _MIN_REQUESTS
    found = {name: (np.bincount(places, whole[name], len(turns)) / counts)[often] for name in LOOKS}
    return turns[often].astype(np.int64) + 1, found


def draw_turns(table: Table, folder: Path, many: bool = False) -> list[Picture]:
    """Draw what became of reusable tokens over the turns.

    Raises
    ------
    RunError
        If a run's requests are not readable.
    OSError
        If the file cannot be written.
    """
    import matplotlib as mpl

    rows, others = named(drawable(table.rows))
    found = {row.label: by_turn(row) for row in rows}
    rows = [row for row in rows if len(found[row.label][0]) > 1]
    if not rows:
        return []
    more = f" {len(others)} more systems are in the table." if others else ""
    text = f"{describe(table.setting, rows)}. Mean over requests and seeds; turns of {_MIN_REQUESTS} or more.{more}"
    path = folder / f"reuse_by_turn{ending(table.setting) if many else ''}.svg"
    with mpl.rc_context(RC):
        figure = _draw(rows, found)
        return [finish(figure, path, "Tokens reused by tier, over turns", text, table.setting)]


def _draw(rows: list[Row], found: Mapping[str, tuple[NDArray[np.int64], Mapping[str, NDArray[np.float64]]]]) -> Figure:
    figure, boxes = panels(len(rows), tall=1.7, top=0.75)
    used = [name for name in LOOKS if any(found[row.label][1][name].any() for row in rows)]
    most = max(float(np.sum([found[row.label][1][name] for name in LOOKS], axis=0).max()) for row in rows)
    for i, (row, axes) in enumerate(zip(rows, boxes, strict=True)):
        _panel(axes, *found[row.label], used)
        axes.set_ylim(0, most * 1.04 or 1.0)
        axes.set_title(name_of(row), color=look(row.system).colour, fontsize=8.5)
        axes.set_xlabel("turn" if i >= len(rows) - 3 else "")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    handles: Any = boxes[0].containers
    place: Any = {"loc": "upper left", "ncols": 6, "frameon": False, "bbox_to_anchor": (0.03, 1.0)}
    figure.legend(handles, [LOOKS[name][0] for name in used], title_fontsize=9, fontsize=8, **place)
    height = figure.get_size_inches()[1]
    figure.text(0.045, 1 - 0.02 / height, "Reusable tokens of a request, by turn", fontweight="bold", va="bottom")
    return figure


def _panel(axes: Axes, turns: NDArray[np.int64], found: Mapping[str, NDArray[np.float64]], used: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    bottom = np.zeros(len(turns))
    for name in used:
        _, colour, hatch = LOOKS[name]
        axes.bar(turns, found[name], 0.86, bottom, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3)
        bottom += found[name]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(False, axis="x")
