"""Small panels of equal size, three beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .drawing import sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
_GAP = 0.75  # inches between rows of panels, for titles and ticks


def panels(count: int, tall: float, top: float = 0.5, below: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels of ``tall`` inches; kept free: ``below`` each, and above all ``top`` inches."""
    columns = min(COLUMNS, count)
    lines = -(-count // columns)
    figure = sheet(11.0, height := top + lines * (tall + below) + (lines - 1) * _GAP + 0.85)
    wide = {1: 0.6, 2: 0.44}.get(columns, 0.29)
    axes = []
    for i in range(count):
        line, column = divmod(i, columns)
        y = height - top - line * (tall + below + _GAP) - tall
        axes.append(figure.add_axes((0.06 + column * (wide + 0.03), y / height, wide, tall / height)))
        axes[-1].locator_params(nbins=5)
        axes[-1].tick_params(labelleft=column == 0)
    return figure, axes
