"""What the tiers hold over time, and what is evicted from them: a panel for each system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .drawing import RC, Picture, ending, finish
from .figures import drawable, name_of, named
from .grids import COLUMNS, panels
from .rows import Row
from .runs import Run
from .style import look
from .table import Table, describe
from .turn_figures import LOOKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TIERS = ("device", "host", "disk")
_MOST, _BINS, _BELOW = 6, 160, 0.55

Held = Mapping[str, NDArray[np.float64]]


def held(run: Run, bins: int = _BINS) -> tuple[NDArray[np.float64], Held, Held]:
    """Edges of equal stretches of the run [b + 1], seconds from its start; for each tier the most that it held in a
    stretch, bytes, or pages where nobody says how large one is [b]; and pages evicted in it, where the run recorded
    them.

    Raises
    ------
    RunError
        If the run's steps are not readable.
    """
    columns = run.steps(
        ["start_s", "duration_s", *(f"{tier}_{what}" for tier in TIERS for what in ("pages", "evicted"))]
    )
    start = columns["start_s"] - columns["start_s"].min(initial=np.inf)
    edges = np.linspace(0.0, float((start + columns["duration_s"]).max(initial=1e-9)), bins + 1)
    place = np.clip(np.searchsorted(edges, start, side="right") - 1, 0, bins - 1)
    size = page_bytes(run) or 1.0
    tiers = [tier for tier in TIERS if columns[f"{tier}_pages"].any()]
    kept = {tier: _most(place, np.asarray(columns[f"{tier}_pages"] * size, np.float64), bins) for tier in tiers}
    told = [tier for tier in TIERS if f"{tier}_evicted" in columns]
    gone = {tier: np.diff(columns[f"{tier}_evicted"], prepend=0) for tier in told}
    return (
        edges,
        kept,
        {tier: np.bincount(place, pages, bins).astype(np.float64) for tier, pages in gone.items() if pages.any()},
    )


def page_bytes(run: Run) -> float | None:
    """Bytes of a device page; None where the summary does not tell."""
    most, pages = run.figure("device", "peak_kv_bytes"), run.figure("device", "peak_pages")
    return most / pages if most and pages else None


def _most(place: NDArray[np.int64], values: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """The largest value of each bin; an empty one has the last before it."""
    found = np.full(bins, -1.0)
    np.maximum.at(found, place, values)
    last = np.empty(bins)
    last[place] = values  # the last one of each bin wins
    filled = np.maximum.accumulate(np.where(found >= 0, np.arange(bins), 0))
    return np.where(found >= 0, found, last[filled])


def draw_memory(table: Table, folder: Path, many: bool = False) -> list[Picture]:
    """Draw memory over time, of the first seed of each system.

    Raises
    ------
    RunError
        If a run's steps are not readable.
    OSError
        If the file cannot be written.
    """
    import matplotlib as mpl

    rows, _ = named(drawable(table.rows))
    if not rows:
        return []
    left = f" {len(rows) - _MOST} more systems are not drawn." if len(rows) > _MOST else ""
    rows = rows[:_MOST]
    path = folder / f"memory_over_time{ending(table.setting) if many else ''}.svg"
    found = {row.label: held(row.runs[0]) for row in rows}
    gone = " Below: pages that policies chose to evict in it." if any(one for _, _, one in found.values()) else ""
    text = (
        f"{describe(table.setting, rows)}; of each system the first seed. Filled: the most that each tier held in a "
        f"stretch of 1/{_BINS} of the run.{gone}{left}"
    )
    with mpl.rc_context(RC):
        return [finish(_draw(rows, found), path, "Memory by tier over time", text, table.setting)]


def _draw(rows: Sequence[Row], found: Mapping[str, tuple[NDArray[np.float64], Held, Held]]) -> Figure:
    evicted = any(gone for _, _, gone in found.values())
    figure, boxes = panels(len(rows), tall=1.6, top=0.75, below=_BELOW if evicted else 0.0)
    unit, factor = _unit(rows, [kept for _, kept, _ in found.values()])
    most, gone_most = (_highest(by_tier) for by_tier in zip(*(one[1:] for one in found.values()), strict=True))
    for i, (row, axes) in enumerate(zip(rows, boxes, strict=True)):
        edges, kept, gone = found[row.label]
        tiers = [tier for tier in TIERS if tier in kept]
        colours = [LOOKS[f"reused_{tier}"][1] for tier in tiers]
        if tiers:
            axes.stackplot(
                edges[:-1], *(kept[tier] * factor for tier in tiers), colors=colours, step="post", linewidth=0
            )
        axes.set_ylim(0, most * factor * 1.04)
        axes.set_xlim(0, edges[-1])
        axes.set_title(name_of(row), color=look(row.system).colour, fontsize=8.5)
        lowest = _evictions(axes, edges, gone, gone_most) if evicted else axes
        lowest.tick_params(labelleft=i % COLUMNS == 0)
        lowest.set_xlabel("seconds" if i >= len(rows) - 3 else "")
    height = figure.get_size_inches()[1]
    figure.text(0.045, 1 - 0.02 / height, f"K/V that the tiers hold, {unit}", fontweight="bold", va="bottom")
    _legend(figure, [kept for _, kept, _ in found.values()])
    return figure


def _highest(found: Sequence[Held]) -> float:
    return max((float(np.sum(list(by_tier.values()), axis=0).max()) for by_tier in found if by_tier), default=1.0)


def _legend(figure: Figure, found: Sequence[Held]) -> None:
    from matplotlib.patches import Patch

    used = [tier for tier in TIERS if any(tier in kept for kept in found)]
    handles = [Patch(color=LOOKS[f"reused_{tier}"][1]) for tier in used]
    place: Any = {"loc": "upper left", "ncols": 3, "frameon": False, "bbox_to_anchor": (0.03, 1.0)}
    figure.legend(handles, used, fontsize=8, **place)


def _unit(rows: Sequence[Row], found: Sequence[Held]) -> tuple[str, float]:
    if any(page_bytes(row.runs[0]) is None for row in rows):
        return "pages", 1.0
    most = max((float(values.max()) for kept in found for values in kept.values()), default=0.0)
    return ("GiB", 2.0**-30) if most >= 2**29 else ("MiB", 2.0**-20)


def _evictions(axes: Axes, edges: NDArray[np.float64], gone: Held, most: float) -> Axes:
    """Bars that hang from the axis, below the panel."""
    box = axes.get_position()
    part = _BELOW * 0.8 * box.height / 1.6
    below = axes.figure.add_axes((box.x0, box.y0 - part, box.width, part), sharex=axes)
    bottom = np.zeros(len(edges) - 1)
    for tier, pages in gone.items():
        colour = LOOKS[f"reused_{tier}"][1]
        below.bar(edges[:-1], pages, np.diff(edges), bottom, align="edge", color=colour, linewidth=0)
        bottom += pages
    below.set_ylim(most * 1.05, 0)
    below.set_yticks([most], [f"{most:,.0f} evicted"], fontsize=6.5)
    below.spines["bottom"].set_visible(False)
    axes.tick_params(labelbottom=False)
    return below
