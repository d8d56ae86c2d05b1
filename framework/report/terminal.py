"""A setting's table for a terminal: as much of it as there are columns for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import compress
from operator import not_
from typing import TYPE_CHECKING

from .rows import Row
from .table import Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

_WIDE = 110


def rich_table(table: Table, console: Console, width: int) -> RichTable:
    """The widest form of ``table`` that fits: with spreads, without them, or also without what the regret tells too."""
    forms: list[Callable[[], RichTable]] = [
        lambda: _laid_out(table, spreads=True, tight=False),
        lambda: _laid_out(table, spreads=False, tight=False),
    ]
    for form in forms if width >= _WIDE else ():
        if console.measure(form(), options=console.options.update(width=10_000)).maximum <= width:
            return form()
    return _laid_out(table, spreads=False, tight=True)


def _laid_out(table: Table, spreads: bool, tight: bool) -> RichTable:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable

    padding = 0 if tight else (0, 1)
    shown = RichTable(box=SIMPLE_HEAD, padding=padding, collapse_padding=True, show_edge=False)
    shown.title, shown.title_justify = escape(str(table.setting)), "left"
    hidden = " The spreads are in comparison.md." if not spreads and " ± " in str(table.cells) else ""
    shown.caption, shown.caption_justify = escape(table.caption + hidden), "left"
    labels = [marked_label(row) for row in table.rows]
    shown.add_column("system", overflow="fold", min_width=min(30, max((_widest(label) for label in labels), default=0)))
    left_out = [tight and title == "recomputed" for title, _ in table.headers]
    for title, unit in compress(table.headers, map(not_, left_out)):
        lines = (title.split() + unit.split()) if tight else [title, unit]
        shown.add_column(escape("\n".join(lines)), justify="right", no_wrap=not tight)
    for row, label, cells in zip(table.rows, labels, table.cells, strict=True):
        kept = compress(cells, map(not_, left_out))
        texts = [cell if spreads else replace(cell, text=cell.text.partition(" ± ")[0]) for cell in kept]
        marked = [cell.marked("[bold green]{}[/bold green]") for cell in texts]
        shown.add_row(escape(_folded(label)), *marked, style="dim" if row.oracle or not row.ok else None)
    return shown


def _folded(label: str) -> str:
    """``label`` with breaks where it may be broken: before each choice that differs from its system."""
    return label if len(label) <= 30 else label.replace("+", "\n+").replace(" ", "\n ")


def _widest(label: str) -> int:
    return max(map(len, _folded(label).split("\n")))


def marked_label(row: Row) -> str:
    """The label, and in brackets what a reader must know: oracle, failed, saturated."""
    marks = [
        name for name, set_ in (("oracle", row.oracle), ("failed", not row.ok), ("saturated", row.saturated)) if set_
    ]
    return f"{row.label} ({', '.join(marks)})" if marks else row.label
