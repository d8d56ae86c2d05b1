"""What stands on the page: sections of tables and figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..batches import group as batch_group
from ..quality_samples import grid as sample_grid
from ..quality_tables import Grid, details, grids, notes
from ..replay import shown_label
from ..runs import Setting
from ..style import look
from ..table import Cell, Table, describe, together
from ..terminal import marked_label

if TYPE_CHECKING:
    from ..comparison import Comparison
    from ..drawing import Picture
    from ..improvement import ImprovementTable


@dataclass(frozen=True, slots=True)
class Shown:
    """A cell: ``text``; ``mark``: best, tied, better, worse or nothing; ``colour`` (rrggbb) of a system's name."""

    text: str
    mark: str = ""
    colour: str = ""

    @property
    def number(self) -> str:
        """What it is sorted by, as text: its first number, else nothing."""
        found = re.match(r"[+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?", self.text)
        return found[0].replace(",", "").lstrip("+") if found else ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table. ``headers``: (title, unit); ``rows``: (class of the row, cells); ``lines``: paragraphs beneath."""

    title: str
    headers: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[Shown, ...]], ...]
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Album:
    """Pictures under a heading; ``title`` "" for those of the whole section."""

    title: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """``kind``: measured, simulated, replayed or judged; never two of them in one section."""

    title: str
    kind: str
    sheets: tuple[Sheet, ...]
    albums: tuple[Album, ...]

    @property
    def anchor(self) -> str:
        """Its id on the page."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.kind} {self.title}".lower()).strip("-")


def sections(comparison: Comparison) -> list[Section]:
    """The page from top to bottom."""
    return [
        *_served(comparison),
        *_judged(comparison),
        *_replayed(comparison),
        *_batches(comparison),
    ]


def _served(comparison: Comparison) -> Iterator[Section]:
    families: dict[Setting, list[Table]] = {}
    for table in comparison.tables:
        families.setdefault(_family(table.setting), []).append(table)
    for family, tables in families.items():
        settings = [table.setting for table in tables]
        better = [one for one in comparison.better if one.setting in settings]
        sheets = [_served_sheet(tables), *([_better_sheet(better, settings)] if better else [])]
        samples = [one for one in comparison.samples if one.setting in settings]
        sheets += [_grid_sheet(sample_grid(one), "system", one.caption) for one in samples]
        titles = {one.title for one in samples}
        pictures = [one for one in comparison.pictures if _belongs(one, family) or one.group in titles]
        title = f"{family.workload}, {family.model} on {family.hardware}"
        yield Section(title, family.kind, tuple(sheets), tuple(_albums(pictures, settings)))


def _family(setting: Setting) -> Setting:
    return replace(setting, knobs="")


def _belongs(picture: Picture, family: Setting) -> bool:
    return isinstance(picture.group, Setting) and _family(picture.group) == family


def _albums(pictures: Sequence[Picture], settings: Sequence[Setting]) -> Iterator[Album]:
    if len(settings) == 1:
        yield Album("", tuple(pictures))
        return
    whole = tuple(one for one in pictures if one.group not in settings)
    if whole:
        yield Album("", whole)
    for setting in settings:
        if own := tuple(one for one in pictures if one.group == setting):
            yield Album(setting.knobs or "as configured", own)


def _knobs(settings: Sequence[Setting]) -> list[str]:
    """The knobs in which the settings differ, in order of their names."""
    found = {word.partition("=")[0] for setting in settings for word in setting.knobs.split()}
    return [key for key in sorted(found) if len({_value(setting, key) for setting in settings}) > 1]


def _value(setting: Setting, key: str) -> str:
    words = [word for word in setting.knobs.split() if word.startswith(f"{key}=")]
    return words[-1].partition("=")[2] if words else "-"


def _served_sheet(tables: Sequence[Table]) -> Sheet:
    settings = [table.setting for table in tables]
    knobs, whole = _knobs(settings), together(tables)
    headers = (("system", ""), *((key, "") for key in knobs), *whole[0].headers)
    rows = []
    for table in whole:
        given = [Shown(_value(table.setting, key)) for key in knobs]
        for row, cells in zip(table.rows, table.cells, strict=True):
            kind = "oracle" if row.oracle else "" if row.ok else "failed"
            name = Shown(marked_label(row), colour=_colour(row.system))
            rows.append((kind, (name, *given, *map(_cell, cells))))
    told = [(table, row, note) for table in tables for row in table.rows for note in row.notes]
    lines = [f"{_at(table.setting, knobs)}{row.label}: {note}" for table, row, note in told]
    captions = dict.fromkeys(table.caption for table in tables) if len(tables) == 1 else _common(tables)
    return Sheet("systems", headers, tuple(rows), (*captions, *dict.fromkeys(lines)))


def _common(tables: Sequence[Table]) -> list[str]:
    """What all captions say, once: how to read the marks."""
    marks = dict.fromkeys(table.caption.removeprefix(f"{describe(table.setting, table.rows)}. ") for table in tables)
    rows = [row for table in tables for row in table.rows]
    about = describe(tables[0].setting, rows).partition("; ")[2]
    return [f"{about}. Bold and the marks are within each setting. {mark}" for mark in marks]


def _at(setting: Setting, knobs: Sequence[str]) -> str:
    given = " ".join(f"{key}={_value(setting, key)}" for key in knobs)
    return f"{given}: " if given else ""


def _better_sheet(better: Sequence[ImprovementTable], settings: Sequence[Setting]) -> Sheet:
    knobs = _knobs(settings)
    widest = max(better, key=lambda one: len(one.metrics))
    rows = []
    for one in better:
        given = [Shown(_value(one.setting, key)) for key in knobs]
        places = {metric.name: i for i, metric in enumerate(one.metrics)}
        for row in one.rows:
            found = one.cells(row.label)
            cells: list[Shown] = []
            for metric in widest.metrics:
                at = places.get(metric.name)
                value = one.found[row.label][metric.name] if at is not None else None
                pair = (Cell("-"), Cell("-")) if at is None else found[2 * at : 2 * at + 2]
                good = value is not None and value.significant and value.value > (0 if "ratio" in metric.name else 1)
                mark = "" if value is None or not value.significant else "better" if good else "worse"
                cells += [Shown(pair[0].text, mark), Shown(pair[1].text, mark)]
            rows.append(
                ("oracle" if row.oracle else "", (Shown(row.label, colour=_colour(row.system)), *given, *cells))
            )
    bases = ", ".join(dict.fromkeys(one.baseline for one in better))
    headers = (("system", ""), *((key, "") for key in knobs), *widest.headers)
    return Sheet(f"improvement over {bases}", headers, tuple(rows), tuple(dict.fromkeys(one.caption for one in better)))


def _grid_sheet(grid: Grid, first: str, *lines: str) -> Sheet:
    rows = tuple(
        ("oracle" if oracle else "", (Shown(label, colour=_colour(label.split(" ")[0])), *map(_cell, cells)))
        for label, oracle, cells in grid.rows
    )
    return Sheet(grid.title, ((first, ""), *grid.headers), rows, lines)


def _cell(cell: Cell) -> Shown:
    return Shown(cell.marked("{}"), "best" if cell.best else "tied" if cell.tied else "")


def _colour(system: str) -> str:
    return look(system).colour.removeprefix("#")


def _judged(comparison: Comparison) -> Iterator[Section]:
    for table in comparison.quality:
        several = [details(table)] if len(table.budgets) > 1 else []
        sheets = [_grid_sheet(grid, "policy") for grid in [*grids(table), *several]]
        sheets[-1] = replace(sheets[-1], lines=(notes(table),))
        own = tuple(one for one in comparison.pictures if one.group == table.setting)
        yield Section(str(table.setting), "judged", tuple(sheets), (Album("", own),) if own else ())


def _replayed(comparison: Comparison) -> Iterator[Section]:
    for table in comparison.replays:
        named: list[tuple[str, bool, Any]] = [
            (shown_label(row), row.oracle, tuple(cells)) for row, cells in zip(table.rows, table.cells(), strict=True)
        ]
        sheet = _grid_sheet(Grid("hit ratios", tuple(table.headers), tuple(named)), "policy", table.caption)
        own = tuple(one for one in comparison.pictures if one.group == table.setting)
        yield Section(str(table.setting), "replayed", (sheet,), (Album("", own),) if own else ())


def _batches(comparison: Comparison) -> Iterator[Section]:
    for table in comparison.batches:
        rows = tuple((batch, False, tuple(Cell(cell) for cell in cells)) for batch, cells in table.rows())
        headers = tuple((title, "") for title in table.headers)
        sheet = _grid_sheet(Grid("conversations at once", headers, rows), "conversations")
        own = tuple(one for one in comparison.pictures if one.group == batch_group(table))
        yield Section(batch_group(table), table.setting.kind, (_plain(sheet),), (Album("", own),) if own else ())


def _plain(sheet: Sheet) -> Sheet:
    """Without colours: the first column names no system."""
    return replace(sheet, rows=tuple((kind, (Shown(cells[0].text), *cells[1:])) for kind, cells in sheet.rows))
