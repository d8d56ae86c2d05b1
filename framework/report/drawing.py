"""What all figures share: paper and type, names beside curves, captions, and the files they become."""

from __future__ import annotations

import io
import itertools
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..metrics.files import replace_text
from .runs import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

MOST_CURVES = 12  # more have names that nobody reads: the best are named, the others grey
OTHERS = "#9a9a9a"
_MAX_NAME = 29
_LINE_INCHES = 0.155  # of a name of 8.5 points
_CAPTION_TOP = 0.36  # inches above the lower edge
_MARGIN = 0.08
_TICKS = (0.62, 0.46, 0.2, 0.26)  # inches that ticks, their names and titles take: left, below, right, above
RC: dict[Any, Any] = {
    "font.size": 9,
    "font.family": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
}


class OfSetting(Protocol):
    """Runs that can be compared. ``setting``: what is equal in all of them."""

    @property
    def setting(self) -> object: ...


Item = TypeVar("Item", bound=OfSetting)


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as it was drawn.

    Attributes
    ----------
    path: the PNG or SVG file, with the caption in it.
    title: what it shows, in words.
    caption: workload, model, hardware, n, seeds, version, and how to read it.
    svg: the same for a page, without the caption; the ids in it begin with ``path.stem``.
    group: what it stands under: the setting, or the title, of the table of the same runs.
    """

    path: Path
    title: str
    caption: str
    svg: str
    group: object


def one_each(items: Sequence[Item], folder: Path, name: str, draw: Callable[[Item, Path], Picture]) -> list[Picture]:
    """A picture of each of ``items``, in the house's type, in ``folder``: under ``name``, or, where there are several,
    under that and the item's setting.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    import matplotlib as mpl

    stem, suffix = Path(name).stem, Path(name).suffix
    with mpl.rc_context(RC):
        ends = [ending(str(item.setting)) if len(items) > 1 else "" for item in items]
        return [draw(item, folder / f"{stem}{end}{suffix}") for item, end in zip(items, ends, strict=True)]


def finish(figure: Figure, path: Path, title: str, text: str, group: object) -> Picture:
    """Write ``figure`` with the caption ``text`` to ``path``: as PNG or, in half the time, as SVG, as its name ends.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    plain = _extent(figure, _MARGIN)
    note = caption(figure, text)
    note.set_gid("caption")
    whole = _extent(figure, _MARGIN)
    if path.suffix == ".png":
        figure.savefig(path, dpi=150, facecolor="white", bbox_inches=whole)
    out = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with mpl.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", bbox_inches=whole, facecolor="white", metadata=nothing)
    if path.suffix == ".svg":
        replace_text(path, out.getvalue())
    box = (plain.x0 - whole.x0, whole.y1 - plain.y1, plain.width, plain.height)
    return Picture(path, title, text, _inline(out.getvalue(), path.stem, box), group)


def _inline(svg: str, prefix: str, box: Sequence[float]) -> str:
    """``svg`` for a page, to a hundredth of a point: the part ``box`` (x, y, width, height in inches), without head,
    paper and caption, and with ids that no other figure of the page has."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for part in ("patch_1", "caption"):
        body = re.sub(rf'<g id="{part}">.*?</g>\n', "", body, count=1, flags=re.DOTALL)
    view = " ".join(f"{72 * inches:.2f}" for inches in box)
    body = re.sub(
        r'<svg[^>]*? xmlns="[^"]*"', f'<svg viewBox="{view}" xmlns="http://www.w3.org/2000/svg"', body, count=1
    )
    body = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), body)
    return re.sub(r'(id="|href="#|url\(#)', lambda found: f"{found[1]}{prefix}-", body).strip()


def _extent(figure: Figure, margin: float) -> Bbox:
    """What holds ink, in inches, with ``margin``; ``bbox_inches="tight"`` would draw all once more to find out."""
    from matplotlib.transforms import Bbox

    renderer: Any = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    texts = [*figure.texts, *(text for axes in figure.axes for text in _texts(axes))]
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    panels = Bbox.union([axes.bbox for axes in figure.axes])
    left, below, right, above = (inches * figure.dpi for inches in _TICKS)
    around = Bbox.from_extents(panels.x0 - left, panels.y0 - below, panels.x1 + right, panels.y1 + above)
    return Bbox.union([around, *boxes]).transformed(figure.dpi_scale_trans.inverted()).padded(margin)


def _texts(axes: Axes) -> list[Any]:
    """Titles, notes, and the names of categories on the left."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedLocator

    fixed = isinstance(axes.yaxis.get_major_locator(), FixedLocator)
    return [child for child in axes.get_children() if isinstance(child, Text)] + (
        list(axes.get_yticklabels()) if fixed else []
    )


def ending(setting: Setting | str) -> str:
    """What the setting adds to a file's name."""
    return "_" + re.sub(r"[^a-z0-9]+", "-", str(setting).lower()).strip("-")


def sheet(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def new_figure(height: float = 4.2) -> tuple[Figure, Axes]:
    """A figure of ``height`` inches with room for names at the right and a caption below."""
    figure = sheet(8.2, height)
    return figure, figure.add_axes((0.09, 0.85 / height, 0.64, 1 - 1.25 / height))


def tall(names: Sequence[str], least: float = 4.2) -> float:
    """Inches of a figure in which ``names`` fit above each other."""
    return max(least, 1.35 + _LINE_INCHES * 1.12 * sum(name.count("\n") + 1 for name in names))


def caption(figure: Figure, text: str) -> Any:
    """Write ``text`` below the axes, and return it."""
    width, height = figure.get_size_inches()
    lines = "\n".join(textwrap.wrap(text, int(17 * width)))
    return figure.text(0.02, _CAPTION_TOP / height, lines, fontsize=7, color="#555555", va="top")


def broken(label: str, *marks: str) -> str:
    """``label`` and ``marks``, broken before a ``+``, a knob or a mark where it is long."""
    lines = [""]
    for piece in [*re.split(r"(?=\+)|(?= )", label), *(f" ({mark})" for mark in marks)]:
        if lines[-1] and len(lines[-1]) + len(piece) > _MAX_NAME:
            lines.append(piece.strip())
        else:
            lines[-1] += piece
    return "\n".join(lines)


def label_ends(axes: Axes, ends: list[tuple[float, float, str, str]], gap: float = 0.0) -> None:
    """Write names at the right of the ends of lines so that none lies over another.

    ``ends``: x and y of each end, its name and colour; ``gap``: the least distance, of the axes' height.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = sorted(ends, key=lambda end: end[1])
    gaps = room(axes, [name for _, _, name, _ in ends], gap)
    heights = spread([float(to_axes.transform((x, y))[1]) for x, y, _, _ in ends], gaps)
    for (x, y, name, colour), height in zip(ends, heights, strict=True):
        lead(axes, (x, y), height, name, colour)


def lead(axes: Axes, place: tuple[float, float], height: float, name: str, colour: str) -> None:
    """Write ``name`` at the right of ``axes``, at ``height`` of them, with a thin line to ``place`` (data)."""
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.45, "shrinkA": 2, "shrinkB": 2}
    axes.annotate(
        name,
        place,
        xytext=(1.05, height),
        textcoords="axes fraction",
        color=colour,
        va="center",
        fontsize=8.5,
        arrowprops={**line, "relpos": (0.0, 0.5)},
        annotation_clip=False,
    )


def names_beside(figure: Figure, x: float, entries: Sequence[tuple[str, str]]) -> None:
    """Write names and colours below each other, where several panels share them; ``x``: share of the width."""
    height = float(figure.get_size_inches()[1])
    top = 1 - 0.45 / height
    for name, colour in entries:
        lines = name.count("\n") + 1
        figure.text(x, top, name, color=colour, fontsize=8.5, va="top", fontweight="bold")
        top -= (lines * _LINE_INCHES + 0.07) / height


def room(axes: Axes, names: Sequence[str], least: float = 0.0) -> list[float]:
    """How far the middles of ``names`` above each other must be apart, of the axes' height; one fewer than names."""
    height = axes.bbox.height / axes.figure.dpi
    needs = [(name.count("\n") + 1) * _LINE_INCHES / height for name in names]
    return [max(least, (one + other) / 2) for one, other in itertools.pairwise(needs)]


def spread(heights: Sequence[float], gap: float | Sequence[float]) -> list[float]:
    """``heights`` (ascending), moved as little as needed to lie at least ``gap`` apart and, if they fit, below 1.

    ``gap``: one for all, or that between each and the next.
    """
    gaps = [gap] * (len(heights) - 1) if isinstance(gap, int | float) else list(gap)
    moved: list[float] = []
    for i, height in enumerate(heights):
        moved.append(height if not moved else max(height, moved[-1] + gaps[i - 1]))
    limit = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - (gaps[i - 1] if i else 0.0)
    return moved


def log_seconds(axis: Any) -> None:
    """Ticks such as 10 ms, 100 ms, 1 s; the steps between are named only if there is less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    few = high < 30 * low
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(lambda value, _: seconds(value))
    axis.set_minor_formatter(NullFormatter())


def seconds(value_s: float) -> str:
    """A time for people: 0, 12 us, 3.4 ms, 5.6 s."""
    if value_s == 0:
        return "0"
    if value_s < 1e-3:
        return f"{value_s * 1e6:.3g} us"
    return f"{value_s * 1e3:.3g} ms" if value_s < 1 else f"{value_s:.3g} s"
