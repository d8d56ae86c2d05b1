"""Throughput and memory against the number of conversations at once, from runs that differ in ``workload.limit``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .drawing import Picture, finish, label_ends, one_each, sheet, tall
from .numbers import short
from .rows import Estimate, estimate
from .runs import Run, Setting
from .style import look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table as RichTable

KEY, WORKLOAD = "workload.limit", "rounds"
_FIGURES = (("throughput", "output_tokens_per_s"), ("device", "peak_kv_bytes"))


@dataclass(frozen=True, slots=True)
class BatchTable:
    """Equal conversations that all begin at once: the systems of one setting over how many there are.

    ``batches``: ascending, at least two. ``systems``: by label, for each batch (tokens/s, most bytes of K/V at once),
    None where a system has no run.
    """

    setting: Setting
    batches: tuple[int, ...]
    systems: dict[str, tuple[tuple[Estimate, Estimate] | None, ...]]

    @property
    def memory(self) -> tuple[str, float]:
        """The unit that fits the memory, and how many of it a byte is."""
        most = max((pair[1].mean for found in self.systems.values() for pair in found if pair is not None), default=0.0)
        return ("GiB", 2.0**-30) if most >= 2**29 else ("MiB", 2.0**-20)

    @property
    def headers(self) -> list[str]:
        """Two columns for each system."""
        return [f"{label} {unit}" for label in self.systems for unit in ("[tokens/s]", f"[{self.memory[0]} of K/V]")]

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """Batch and cells."""
        for i, batch in enumerate(self.batches):
            cells: list[str] = []
            for found in self.systems.values():
                pair = found[i]
                cells += ["-", "-"] if pair is None else [_text(pair[0], 1.0), _text(pair[1], self.memory[1])]
            yield f"{batch:,}", cells


def _text(found: Estimate, factor: float) -> str:
    text = short(found.mean * factor)
    return text if found.half_width is None else f"{text} ± {short(found.half_width * factor)}"


def batch_tables(runs: Sequence[Run]) -> list[BatchTable]:
    """A table for each setting of equal conversations in which the command line varied how many there are."""
    settings: dict[Setting, dict[str, dict[int, list[Run]]]] = {}
    for run in runs:
        if run.ok and run.info["workload"] == WORKLOAD and (batch := _batch(run)) is not None:
            systems = settings.setdefault(run.setting.without(KEY), {})
            systems.setdefault(run.label, {}).setdefault(batch, []).append(run)
    tables = (_table(setting, systems) for setting, systems in settings.items())
    return [table for table in tables if len(table.batches) > 1]


def _batch(run: Run) -> int | None:
    text = run.knob(KEY) or ""
    known = all(run.figure(*path) is not None for path in _FIGURES)
    return int(text) if text.isdigit() and known else None


def _table(setting: Setting, systems: dict[str, dict[int, list[Run]]]) -> BatchTable:
    batches = tuple(sorted({batch for found in systems.values() for batch in found}))
    shown = {label: tuple(_pair(found.get(batch, [])) for batch in batches) for label, found in systems.items()}
    return BatchTable(setting, batches, shown)


def _pair(runs: Sequence[Run]) -> tuple[Estimate, Estimate] | None:
    if not runs:
        return None
    speed, memory = (estimate([run.figure(*path) or 0.0 for run in runs]) for path in _FIGURES)
    return speed, memory


def markdown(table: BatchTable) -> str:
    """The table for ``comparison.md``."""
    lines = [f"## {group(table)}", "", _line(["conversations", *table.headers])]
    lines.append(_line(["---:"] * (1 + len(table.headers))))
    return "\n".join([*lines, *(_line([batch, *cells]) for batch, cells in table.rows())])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def rich_batches(table: BatchTable) -> RichTable:
    """The table for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, show_edge=False)
    shown.title, shown.title_justify = escape(group(table)), "left"
    for header in ("conversations", *table.headers):
        shown.add_column(escape(header.replace(" [", "\n[")), justify="right")
    for batch, cells in table.rows():
        shown.add_row(batch, *cells)
    return shown


def draw_batches(tables: Sequence[BatchTable], folder: Path) -> list[Picture]:
    """Draw tokens per second and memory over the conversations at once, a figure for each of ``tables``.

    Raises
    ------
    OSError
        If a file cannot be written.
    """

    def picture(table: BatchTable, path: Path) -> Picture:
        text = f"{table.setting}; equal conversations that all begin at once"
        return finish(_draw(table), path, "Throughput by conversations at once", text, group(table))

    return one_each(tables, folder, "throughput_by_batch.png", picture)


def group(table: BatchTable) -> str:
    """The heading of the table."""
    return f"{table.setting}: conversations at once"


def _draw(table: BatchTable) -> Figure:
    figure = sheet(11, height := tall(list(table.systems), least=4.0))
    unit, factor = table.memory
    panels = (("Output tokens per second", 1.0), (f"Most K/V on the device, {unit}", factor))
    for place, (title, scale) in enumerate(panels):
        axes = figure.add_axes((0.07 + 0.5 * place, 0.88 / height, 0.3, 1 - 1.35 / height))
        _panel(axes, table, place, title, scale)
    return figure


def _panel(axes: Axes, table: BatchTable, place: int, title: str, factor: float) -> None:
    ends: list[tuple[float, float, str, str]] = []
    for label, found in table.systems.items():
        known = [(batch, pair[place]) for batch, pair in zip(table.batches, found, strict=True) if pair is not None]
        x, y = [batch for batch, _ in known], [one.mean * factor for _, one in known]
        style = look(label)
        axes.plot(x, y, color=style.colour, linestyle=style.line, marker="o", markersize=3, linewidth=1.8)
        spread = [(one.half_width or 0.0) * factor for _, one in known]
        if any(spread):
            low, high = ([a + sign * b for a, b in zip(y, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0)
        ends.append((float(x[-1]), y[-1], f"{label}  {short(y[-1])}", style.colour))
    axes.set_xscale("log", base=2)
    axes.set_xticks(table.batches, [f"{batch:,}" for batch in table.batches])
    axes.set_ylim(0, axes.get_ylim()[1] * 1.04)
    axes.set_xlabel("conversations at once")
    axes.set_title(title)
    label_ends(axes, ends)
