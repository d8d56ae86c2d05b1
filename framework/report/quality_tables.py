"""Quality as tables: figures by budget, and all of them for each policy and budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .numbers import short
from .quality import ALL, FULL, MEASURES, RANDOM, TEXT, QualityRow, QualityTable
from .table import Cell

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_WIDE = 110
BETTER, WORSE = "↑", "↓"


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure as it is shown: its value times ``factor``, with ``decimals`` or three digits, and which end is best."""

    name: str
    title: str
    unit: str
    best: Literal["min", "max", ""]
    factor: float = 1.0
    decimals: int | None = None

    def text(self, value: float) -> str:
        """One value."""
        shown = value * self.factor
        return short(shown) if self.decimals is None else f"{shown:.{self.decimals}f}"


ACCURACY = Measure("accuracy", "accuracy", "%", "max", 100, 1)
DIVERGENCE = Measure("kl_nats", "KL", "nats", "min", 1, 3)
BITS = Measure("bits_per_token", "text", "bits/token", "min", 1, 3)
SHARE = Measure("kv_share", "K/V", "% of full", "", 100, 1)
OTHERS = (
    DIVERGENCE,
    Measure("top1", "top-1", "% equal", "max", 100, 1),
    Measure("attention_error", "attention error", "%", "min", 100, 1),
    Measure("recall", "recall", "% of top keys", "max", 100, 1),
)


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: ``title``, columns as (title, unit), and rows as (label, oracle, cells)."""

    title: str
    headers: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, bool, tuple[Cell, ...]], ...]


def grids(table: QualityTable) -> list[Grid]:
    """What is shown first: figures by budget, or, with one budget, all figures of each policy."""
    if len(table.budgets) < 2:
        return [details(table)]
    found = [by_budget(table, measure, ALL) for measure in (ACCURACY, DIVERGENCE)] if table.asks else []
    return [*found, by_budget(table, BITS, TEXT)] if TEXT in table.tasks else found


def by_budget(table: QualityTable, measure: Measure, task: str) -> Grid:
    """``measure`` of ``task`` for each policy and budget; policies with a size of their own have the last column."""
    own = any(row.budget is None for row in table.rows if row.label != FULL)
    budgets: list[float | None] = [*table.budgets, *([None] if own else [])]
    labels = [label for label in table.labels if label != FULL]
    columns = [cells([table.row(label, budget) for label in labels], measure, task) for budget in budgets]
    headers = tuple(("own size", "") if budget is None else (f"{budget:.0%}", "") for budget in budgets)
    rows: list[tuple[str, bool, tuple[Cell, ...]]] = []
    if (whole := table.row(FULL, None)) is not None and whole.interval(task, measure.name) is not None:
        rows.append((FULL, False, (*cells([whole], measure, task), *[Cell("")] * (len(budgets) - 1))))
    for i, label in enumerate(labels):
        first = table.of(label)[0]
        rows.append((_shown(first), first.oracle, tuple(column[i] for column in columns)))
    name = "" if task == ALL else f", {task}"
    title = f"{table.setting}: {measure.title}{name} [{measure.unit}] by K/V budget"
    return Grid(title, headers, tuple(rows))


def details(table: QualityTable) -> Grid:
    """All figures of each policy and budget."""
    asked = [task for task in table.tasks if task != TEXT]
    columns = [(SHARE, ALL if asked else TEXT, SHARE.title)]
    columns += [(ACCURACY, task, _titled(table, task)) for task in asked]
    columns += [(ACCURACY, ALL, "all tasks")] if len(asked) > 1 else []
    columns += [(measure, ALL if asked else TEXT, measure.title) for measure in OTHERS]
    columns += [(BITS, TEXT, "text")] if TEXT in table.tasks else []
    groups = [[row for row in table.rows if row.budget == budget] for budget in (*table.budgets, None)]
    ordered = [row for group in (groups[-1], *groups[:-1]) for row in group]
    found = {id(row): list[Cell]() for row in ordered}
    for measure, task, _ in columns:
        for group in groups:
            for row, cell in zip(group, cells(group, measure, task), strict=True):
                found[id(row)].append(cell)
    headers = tuple((title, measure.unit) for measure, _, title in columns)
    many = len(table.budgets) > 1
    shown = tuple((_shown(row, many), row.oracle, tuple(found[id(row)])) for row in ordered)
    return Grid(str(table.setting), headers, shown)


def _titled(table: QualityTable, task: str) -> str:
    """A task, with what judges replies to it."""
    metric = table.metric(task)
    return task if metric is None else f"{task}: {metric}"


def _shown(row: QualityRow, budget: bool = False) -> str:
    name = f"{row.label} (oracle)" if row.oracle else row.label
    return f"{name}, {row.budget:.0%}" if budget and row.budget is not None else name


def cells(rows: Sequence[QualityRow | None], measure: Measure, task: str) -> list[Cell]:
    """A figure of rows that compete with one another."""
    found = [None if row is None else row.interval(task, measure.name) for row in rows]
    ranked = [
        one.mean
        for row, one in zip(rows, found, strict=True)
        if row is not None and one is not None and not row.oracle and row.label != FULL
    ]
    best = (max if measure.best == "max" else min)(ranked) if measure.best and len(set(ranked)) > 1 else None
    lots = next((row for row in rows if row is not None and row.label == RANDOM), None)
    shown = []
    for row, one in zip(rows, found, strict=True):
        if row is None or one is None:
            shown.append(Cell("-"))
            continue
        text = measure.text(one.mean)
        if one.low is not None and one.high is not None and measure.best:
            text += f" ± {measure.text((one.high - one.low) / 2)}"
        competes = not row.oracle and row.label != FULL
        shown.append(Cell(text + _mark(row, lots, measure, task), competes and one.mean == best))
    return shown


def _mark(row: QualityRow, lots: QualityRow | None, measure: Measure, task: str) -> str:
    """Whether the row is better or worse than tokens by lot at the same budget."""
    if lots is None or row is lots or row.label == FULL or not measure.best:
        return ""
    gain = row.against(lots, task, measure.name)
    if not gain:
        return ""
    return f" {BETTER if (gain > 0) == (measure.best == 'max') else WORSE}"


def notes(table: QualityTable) -> str:
    """What the marks mean."""
    marks = "±: half a 95 % interval (bootstrap over episodes and seeds). "
    lots = f"{BETTER} {WORSE}: better, worse than tokens by lot at the same budget (paired, 95 %). "
    policies = {row.label for row in table.rows if not row.oracle} - {FULL}
    best = "Bold: best policy. " if len(policies) > 1 else ""
    size = "K/V: what a context takes, with what the policy remembers, of the full cache's bytes."
    return f"{table.caption}. {best}{marks}{lots if RANDOM in policies else ''}{size}"


def markdown(table: QualityTable) -> str:
    """The tables for ``comparison.md``."""
    parts = []
    shown = grids(table)
    for grid in [*shown, *([details(table)] if len(table.budgets) > 1 else [])]:
        parts.append(markdown_grid(grid))
    return "\n\n".join([*parts, notes(table)])


def markdown_grid(grid: Grid, first: str = "policy") -> str:
    """A table under its title; ``first``: what the first column is called."""
    header = [first, *(f"{title} [{unit}]" if unit else title for title, unit in grid.headers)]
    lines = [f"## {grid.title}", "", _line(header), _line(["---", *["---:"] * len(grid.headers)])]
    lines += [_line([label, *(cell.marked("**{}**") for cell in found)]) for label, _, found in grid.rows]
    return "\n".join(lines)


def rich_quality(table: QualityTable, width: int) -> Iterator[RichTable]:
    """The tables for a terminal; a narrow one has no room for the intervals."""
    found = grids(table)
    for grid in found:
        yield rich_grid(grid, width, notes(table) if grid is found[-1] else "")


def rich_grid(grid: Grid, width: int, caption: str, first: str = "policy") -> RichTable:
    """A table for a terminal of ``width`` columns, with ``caption`` below."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable

    tight = width < _WIDE or len(grid.headers) > 6
    shown = RichTable(box=SIMPLE_HEAD, padding=0 if tight else (0, 1), collapse_padding=True, show_edge=False)
    shown.title, shown.title_justify = escape(grid.title), "left"
    hidden = " The intervals are in comparison.md." if tight else ""
    if caption:
        shown.caption, shown.caption_justify = escape(caption + hidden), "left"
    shown.add_column(first, overflow="fold")
    for title, unit in grid.headers:
        lines = [*title.replace("_", "_ ").split(), *unit.split()] if tight else [title, unit]
        shown.add_column(escape("\n".join(line for line in lines if line)), justify="right")
    for label, oracle, found in grid.rows:
        marked = [_brief(cell, tight).marked("[bold green]{}[/bold green]") for cell in found]
        shown.add_row(escape(label), *marked, style="dim" if oracle or label == FULL else None)
    return shown


def _brief(cell: Cell, tight: bool) -> Cell:
    if not tight or " ± " not in cell.text:
        return cell
    value, _, rest = cell.text.partition(" ± ")
    mark = rest.partition(" ")[2]
    return Cell(f"{value}{mark}", cell.best)


CSV_NAMES = (
    *("quality_task", "quality_budget", "quality_episodes"),
    *(f"quality_{name}{end}" for name in MEASURES for end in ("", "_low", "_high")),
)


def csv_rows(table: QualityTable) -> Iterator[dict[str, object]]:
    """A row per policy, budget and task for ``comparison.csv``."""
    seeds = " ".join(str(seed) for seed in sorted({int(run.info["seed"] or 0) for run in table.runs}))
    for row in table.rows:
        for task in (*table.tasks, *([ALL] if table.asks else [])):
            yield {
                "kind": "measured",
                "workload": "quality",
                "model": table.setting.model,
                "system": row.label,
                "seeds": seeds,
                **csv_figures(row, task),
                "notes": "oracle: sees the future, not ranked" if row.oracle else "",
                "version": table.runs[0].info["version"],
            }


def csv_figures(row: QualityRow, task: str) -> dict[str, object]:
    """The columns :data:`CSV_NAMES` of a row."""
    figures: dict[str, object] = {}
    for name in MEASURES:
        one = row.interval(task, name)
        if one is not None:
            ends = {"": one.mean, "_low": one.low, "_high": one.high}
            figures |= {f"quality_{name}{end}": "" if value is None else value for end, value in ends.items()}
    return {
        "quality_task": task,
        "quality_budget": "" if row.budget is None else row.budget,
        "quality_episodes": len(row.values(task, "steps")),
        **figures,
    }


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
