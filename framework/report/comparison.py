"""``compare``: run folders in, a table for the terminal, ``comparison.md``, ``comparison.csv`` and figures out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from operator import not_
from pathlib import Path
from typing import TYPE_CHECKING

from ..metrics.files import replace_text
from .batches import BatchTable, batch_tables, draw_batches, rich_batches
from .batches import markdown as batch_markdown
from .curves import draw_miss_ratios
from .figures import draw_figures, draw_size_figures
from .quality import QualityTable, quality_tables
from .quality_curves import draw_quality
from .quality_tables import CSV_NAMES as QUALITY_NAMES
from .quality_tables import csv_rows as quality_rows
from .quality_tables import markdown as quality_markdown
from .quality_tables import rich_quality
from .regret import with_regret
from .replay import CSV_NAMES, ReplayTable, replay_tables, rich_replay
from .replay import markdown as replay_markdown
from .rows import Row, group_rows
from .runs import Run, RunError, is_served, load_run
from .table import METRICS, Table, make_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table as RichTable


_WIDE = 110


@dataclass(frozen=True, slots=True)
class Comparison:
    """What ``compare`` found. Print it with rich: ``Console().print(comparison)``.

    ``tables``: one per setting (measured and simulated never share one); ``problems``: lines about runs that are
    missing or not comparable; ``files``: what was written; ``replays``: one per workload that was replayed;
    ``quality``: one per model and kind of episodes; ``batches``: one per setting in which the number of conversations
    at once varies.
    """

    tables: tuple[Table, ...]
    problems: tuple[str, ...]
    files: tuple[Path, ...] = field(default=())
    replays: tuple[ReplayTable, ...] = field(default=())
    quality: tuple[QualityTable, ...] = field(default=())
    batches: tuple[BatchTable, ...] = field(default=())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        for table in self.tables:
            yield _rich_table(table, options.max_width)
            for note in _notes(table):
                yield Text(note, style="yellow")
        for replay in self.replays:
            yield rich_replay(replay, options.max_width)
        for judged in self.quality:
            yield from rich_quality(judged, options.max_width)
        yield from map(rich_batches, self.batches)
        for problem in self.problems:
            yield Text(problem, style="red")

    def markdown(self) -> str:
        """The content of ``comparison.md``."""
        parts = ["# Comparison", *(_markdown_table(table) for table in self.tables)]
        parts += [replay_markdown(replay) for replay in self.replays]
        parts += [quality_markdown(table) for table in self.quality]
        parts += [batch_markdown(table) for table in self.batches]
        if self.problems:
            parts.append("## Problems\n\n" + "\n".join(f"- {problem}" for problem in self.problems))
        figures = [path for path in self.files if path.suffix == ".png"]
        parts += [f"![{path.stem}](figures/{path.name})" for path in figures]
        return "\n\n".join(parts) + "\n"

    def csv(self) -> str:
        """The content of ``comparison.csv``: SI units; measured and simulated figures in columns of their own."""
        kinds = sorted({table.setting.kind for table in self.tables})
        replayed = (*(CSV_NAMES if self.replays else ()), *(QUALITY_NAMES if self.quality else ()))
        names = [f"{kind}_{metric.name}{end}" for kind in kinds for metric in METRICS for end in ("", "_ci95")]
        fixed = ["kind", "workload", "model", "hardware", "system", "seeds", "requests", "failed", "notes", "version"]
        out = io.StringIO()
        writer = csv.DictWriter(out, [*fixed, *names, *replayed], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(_csv_row(table, row) for table in self.tables for row in table.rows)
        writer.writerows(row for replay in self.replays for row in replay.csv_rows())
        writer.writerows(row for table in self.quality for row in quality_rows(table))
        return out.getvalue()


def compare(folders: Sequence[Path], out: Path, figures: bool = True) -> Comparison:
    """Compare the runs in ``folders``; write ``comparison.md``, ``comparison.csv`` and ``figures/*.png`` into ``out``.

    Only ``summary.json`` and the Parquet files are read. A folder without a readable run is a problem that is reported,
    not an error. Runs that differ only in their seed share a row.

    Raises
    ------
    OSError
        If ``out`` cannot be written.
    """
    runs, problems = _load(folders)
    groups = group_rows([run for run in runs if is_served(run)])
    replays = tuple(replay_tables(runs))
    batches = tuple(batch_tables(runs))
    judged, unreadable = quality_tables(runs)
    problems += unreadable
    problems += [problem for rows in groups.values() for problem in _unequal_workloads(rows)]
    tables = tuple(make_table(setting, with_regret(rows)) for setting, rows in groups.items())
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    if figures:
        for table in tables:
            try:
                drawn += draw_figures(table, out / "figures", many=len(tables) > 1)
            except RunError as error:
                problems.append(f"no figures for {table.setting}: {error}")
        drawn += draw_size_figures(runs, out / "figures")
        drawn += draw_miss_ratios(replays, out / "figures")
        drawn += draw_quality(judged, out / "figures")
        drawn += draw_batches(batches, out / "figures")
    comparison = Comparison(tables, tuple(problems), tuple(drawn), replays, tuple(judged), batches)
    if not (tables or replays or judged or problems):  # a task with a report of its own
        return comparison
    texts = {out / "comparison.md": comparison.markdown(), out / "comparison.csv": comparison.csv()}
    for path, text in texts.items():
        replace_text(path, text)
    return replace(comparison, files=(*texts, *drawn))


def _load(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    runs: list[Run] = []
    problems: list[str] = []
    for folder in folders:
        try:
            runs.append(load_run(folder))
            if not runs[-1].ok:
                problems.append(_failure(runs[-1]))
        except RunError as error:
            problems.append(str(error))
    return runs, problems


def _failure(run: Run) -> str:
    info = run.info
    error = str(info.get("error") or "no error was recorded").splitlines()[0]
    return f"{info['system']}, seed {info['seed']}: {info['status']}: {error} ({run.folder})"


def _unequal_workloads(rows: Sequence[Row]) -> Iterator[str]:
    """Say so where runs of one seed and setting did not serve the same requests."""
    seen: dict[object, dict[tuple[float | None, ...], str]] = {}
    for row in rows:
        for run in row.runs:
            if run.ok and not run.figure("workload", "failed"):
                keys = ("requests", "prompt_tokens", "reusable_tokens")
                sizes = tuple(run.figure("workload", key) for key in keys)
                seen.setdefault(run.info["seed"], {}).setdefault(sizes, row.label)
    for seed, variants in seen.items():
        if len(variants) > 1:
            labels = " and ".join(list(variants.values())[:2])
            yield f"{rows[0].runs[0].setting}, seed {seed}: {labels} served different requests; do not compare them"


def _notes(table: Table) -> list[str]:
    return [f"{row.label}: {note}" for row in table.rows for note in row.notes]


def _rich_table(table: Table, width: int) -> RichTable:
    """The table for a terminal; a narrow one has no room for the spreads, nor for what the regret tells too."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable

    narrow = width < _WIDE
    padding = 0 if narrow else (0, 1)
    shown = RichTable(box=SIMPLE_HEAD, padding=padding, collapse_padding=True, show_edge=False)
    shown.title, shown.title_justify = escape(str(table.setting)), "left"
    hidden = " The spreads are in comparison.md." if narrow and " ± " in str(table.cells) else ""
    shown.caption, shown.caption_justify = escape(table.caption + hidden), "left"
    shown.add_column("system", overflow="fold")
    left_out = [narrow and title == "recomputed" for title, _ in table.headers]
    for title, unit in compress(table.headers, map(not_, left_out)):
        lines = (title.split() + unit.split()) if narrow else [title, unit]
        shown.add_column(escape("\n".join(lines)), justify="right")
    for row, cells in zip(table.rows, table.cells, strict=True):
        kept = compress(cells, map(not_, left_out))
        texts = [replace(cell, text=cell.text.partition(" ± ")[0]) if narrow else cell for cell in kept]
        marked = [cell.marked("[bold green]{}[/bold green]") for cell in texts]
        shown.add_row(escape(_label(row)), *marked, style="dim" if row.oracle or not row.ok else None)
    return shown


def _label(row: Row) -> str:
    marks = [
        name for name, set_ in (("oracle", row.oracle), ("failed", not row.ok), ("saturated", row.saturated)) if set_
    ]
    return f"{row.label} ({', '.join(marks)})" if marks else row.label


def _markdown_table(table: Table) -> str:
    header = ["system", *(f"{title} [{unit}]" for title, unit in table.headers)]
    lines = [f"## {table.setting}", "", _line(header), _line(["---", *["---:"] * len(table.headers)])]
    for row, cells in zip(table.rows, table.cells, strict=True):
        lines.append(_line([_label(row), *(cell.marked("**{}**") for cell in cells)]))
    lines += ["", table.caption, *(f"\n- {note}" if i == 0 else f"- {note}" for i, note in enumerate(_notes(table)))]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _csv_row(table: Table, row: Row) -> dict[str, object]:
    setting, info = table.setting, row.runs[0].info
    shown: dict[str, object] = {
        "kind": setting.kind,
        "workload": setting.workload,
        "model": setting.model,
        "hardware": setting.hardware,
        "system": row.label,
        "seeds": " ".join(str(run.info["seed"]) for run in row.runs),
        "requests": int(sum(run.figure("workload", "requests") or 0 for run in row.runs)),
        "failed": row.failed_requests,
        "notes": "; ".join(row.notes),
        "version": info["version"],
    }
    for metric in METRICS:
        found = row.estimate(metric.path)
        if found is not None:
            shown[f"{setting.kind}_{metric.name}"] = found.mean
            shown[f"{setting.kind}_{metric.name}_ci95"] = "" if found.half_width is None else found.half_width
    return shown
