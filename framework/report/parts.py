"""Where the time of a request went, in parts that add up to its latency.

For a request that arrives at a, is first admitted at s, has its first token at f and its last at c (README of
``framework/metrics``), with x = computed before the first token: prompt + history - reused - dropped tokens:

========== ===========================================================================================================
queue      s - a: until it is first admitted
load stall ``load_stall_s``: waits for its pages to come from a lower tier, as far as there is time after s
recompute  of the rest of f - s the share recomputed / x: tokens computed again that a larger cache would have had
prefill    the rest of f - s: new tokens
decode     the rest of c - f: output tokens; also waits while suspended, and what a suspension makes compute again
========== ===========================================================================================================

The stall is taken from f - s first, and what exceeds it (loads after a suspension) from c - f. Time in which a batch
computes for others counts for the part in which the request is then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .drawing import RC, Picture, ending, finish, seconds, sheet
from .figures import drawable, name_of, named
from .rows import Row
from .runs import Run
from .style import look
from .table import Table, describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Parts = Mapping[str, NDArray[np.float64]]
REUSED = ("reused_device", "reused_host", "reused_disk", "reused_remote")
_TIMES = ("arrival_s", "scheduled_s", "first_token_s", "completion_s", "load_stall_s")
_TOKENS = ("prompt_tokens", "history_tokens", *REUSED, "recomputed", "dropped")
_LOOKS = {
    "queue": ("#8a8a8a", ""),
    "load stall": ("#cc79a7", "xx"),
    "recompute": ("#d55e00", "//"),
    "prefill": ("#e69f00", ""),
    "decode": ("#0072b2", ""),
}


def parts(run: Run) -> Parts:
    """Seconds of each part for each measured request, [n]; their sum is its latency.

    Raises
    ------
    RunError
        If the run's requests are not readable.
    """
    columns = run.requests([*_TIMES, *_TOKENS])
    arrival, admitted, first, done, stall = (np.asarray(columns[name], np.float64) for name in _TIMES)
    before = np.clip(stall, 0.0, first - admitted)
    after = np.clip(stall - before, 0.0, done - first)
    reused = sum(columns[name] for name in REUSED)
    computed = columns["prompt_tokens"] + columns["history_tokens"] - reused - columns["dropped"]
    again = np.clip(columns["recomputed"] / np.maximum(computed, 1), 0.0, 1.0)
    rest = first - admitted - before
    return {
        "queue": admitted - arrival,
        "load stall": before + after,
        "recompute": rest * again,
        "prefill": rest * (1 - again),
        "decode": done - first - after,
    }


def mean_parts(row: Row) -> dict[str, float]:
    """The mean over requests, then over seeds, of each part: seconds."""
    by_run = [{name: float(values.mean()) for name, values in parts(run).items()} for run in row.runs]
    return {name: float(np.mean([one[name] for one in by_run])) for name in _LOOKS}


def draw_parts(table: Table, folder: Path, many: bool = False) -> list[Picture]:
    """Draw where the time went in the runs of ``table``.

    Raises
    ------
    RunError
        If a run's requests are not readable.
    OSError
        If the file cannot be written.
    """
    import matplotlib as mpl

    rows, others = named(drawable(table.rows))
    if not rows:
        return []
    found = {row.label: mean_parts(row) for row in rows}
    more = f" {len(others)} more systems are in the table." if others else ""
    text = (
        f"{describe(table.setting, rows)}. Mean over requests and seeds; the parts add up to the latency. Recompute: "
        f"the share of tokens computed again of the time from admission to the first token, without load stalls.{more}"
    )
    path = folder / f"where_time_went{ending(table.setting) if many else ''}.svg"
    with mpl.rc_context(RC):
        return [finish(_draw(rows, found), path, "Where the time went", text, table.setting)]


def _draw(rows: Sequence[Row], found: Mapping[str, Mapping[str, float]]) -> Figure:
    names = [name_of(row) for row in rows]
    heights = sum(0.22 + 0.16 * (name.count("\n") + 1) for name in names)
    figure = sheet(11.6, height := 1.9 + heights)
    boxes = [(left, 0.85 / height, 0.37, 1 - 1.65 / height) for left in (0.17, 0.6)]
    whole, first = (figure.add_axes(box) for box in boxes)
    _bars(whole, [found[row.label] for row in rows], list(_LOOKS))
    _bars(first, [found[row.label] for row in rows], list(_LOOKS)[:-1])
    whole.set_title("Mean latency of a request", pad=18)
    first.set_title("... without decode (about the time to the first token)", pad=18)
    whole.set_yticks(range(len(rows)), names)
    first.set_yticks(range(len(rows)), [""] * len(rows))
    for tick, row in zip(whole.get_yticklabels(), rows, strict=True):
        tick.set_color(look(row.system).colour)
    entries: Any = whole.containers
    labels = list(_LOOKS)
    place: Any = {"loc": "lower left", "bbox_to_anchor": (-0.01, 0.985), "ncols": 5, "frameon": False}
    whole.legend(entries, labels, fontsize=8, handlelength=1.2, columnspacing=1.2, borderpad=0.2, **place)
    return figure


def _bars(axes: Axes, found: Sequence[Mapping[str, float]], names: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    left = np.zeros(len(found))
    for name in names:
        colour, hatch = _LOOKS[name]
        width = np.array([one[name] for one in found])
        axes.barh(range(len(found)), width, 0.66, left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4)
        left += width
    for i, total in enumerate(left):
        axes.annotate(
            seconds(float(total)), (float(total), i), (4, 0), "data", "offset points", va="center", fontsize=8
        )
    axes.invert_yaxis()
    axes.set_xlim(0, float(left.max()) * 1.14 or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(lambda value, _: seconds(value))
    axes.grid(False, axis="y")
