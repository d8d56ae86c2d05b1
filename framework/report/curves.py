"""The miss-ratio curves of replays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .figures import RC, caption, ending, label_ends, new_figure
from .replay import BELADY, INFINITE, ReplayRow, ReplayTable, shown_label
from .style import look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BESIDE = {BELADY: ("#222222", "--"), INFINITE: ("#777777", ":")}


def draw_miss_ratios(tables: Sequence[ReplayTable], folder: Path) -> list[Path]:
    """Draw the miss ratio over the capacity, one figure for each of ``tables``, into ``folder``.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    import matplotlib as mpl

    drawn = []
    for table in tables:
        path = folder / f"miss_ratio{ending(str(table.setting)) if len(tables) > 1 else ''}.png"
        folder.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(RC):
            figure = _miss_ratio(table)
            bands = " Bands: smallest to largest over seeds." if _seeds(table) > 1 else ""
            caption(figure, f"{table.setting}. {table.caption.split(' Below')[0]}{bands}")
            figure.savefig(path, dpi=150, facecolor="white")
        drawn.append(path)
    return drawn


def _seeds(table: ReplayTable) -> int:
    return max(len(by_seed) for row in table.rows for by_seed in row.figures.values())


def _miss_ratio(table: ReplayTable) -> Figure:
    figure, axes = new_figure(height=max(4.2, 1.6 + 0.3 * len(table.rows)))
    ends: list[tuple[float, float, str, str]] = []
    least = 1.0
    for row in table.rows:
        capacities = [capacity for capacity in row.figures if row.estimate(capacity, "hit_ratio") is not None]
        if not capacities:
            continue
        by_seed = [[1 - one["hit_ratio"] for one in row.figures[capacity].values()] for capacity in capacities]
        colour, line = _look(row)
        middle = [float(np.mean(misses)) for misses in by_seed]
        least = min(least, *map(min, by_seed))
        marker = "" if row.label == INFINITE and len(capacities) > 1 else "o"
        axes.plot(capacities, middle, color=colour, linestyle=line, marker=marker, markersize=3, linewidth=1.8)
        if max(map(len, by_seed)) > 1:
            low, high = [min(misses) for misses in by_seed], [max(misses) for misses in by_seed]
            axes.fill_between(capacities, low, high, color=colour, alpha=0.18, linewidth=0)
        ends.append((float(capacities[-1]), middle[-1], f"{shown_label(row)} {middle[-1]:.1%}", colour))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylim(least - 0.05 if least > 0.4 else 0.0, 1.01)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel(f"pages of {table.setting.page_tokens} tokens that the cache holds (log scale)")
    axes.set_title("Page accesses that miss")
    label_ends(axes, ends, gap=0.055)
    return figure


def _look(row: ReplayRow) -> tuple[str, str | tuple[int, tuple[int, ...]]]:
    if row.label in _BESIDE:
        return _BESIDE[row.label]
    style = look(row.label)
    return style.colour, style.line
