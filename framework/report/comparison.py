"""``compare``: run folders in, a table for the terminal, ``comparison.md``, ``comparison.csv`` and figures out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..metrics.files import replace_text
from .batches import BatchTable, batch_tables, rich_batches
from .batches import markdown as batch_markdown
from .drawing import Picture
from .gallery import Gallery, draw_all
from .html import render_page
from .improvement import ImprovementTable, csv_names, improvements
from .improvement import markdown as improvement_markdown
from .quality import QualityTable, quality_tables
from .quality_samples import SampleTable, rich_samples, sample_tables
from .quality_samples import csv_rows as sample_rows
from .quality_samples import markdown as sample_markdown
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
from .terminal import marked_label, rich_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


FIGURES_LEFT_OUT = "{} more settings have no figures of their own here: `kvarena-report DIR --figures all` draws them."


@dataclass(frozen=True, slots=True)
class Comparison:
    """What ``compare`` found. Print it with rich: ``Console().print(comparison)``.

    ``tables``: one per setting (measured and simulated never share one); ``problems``: lines about runs that are
    missing or not comparable; ``files``: what was written; ``replays``: one per workload that was replayed;
    ``quality``: one per model and kind of episodes; ``batches``: one per setting in which the number of conversations
    at once varies; ``samples``: one per setting in which runs judged what they served; ``better``: improvements, one
    per setting with a baseline; ``left_out``: settings without figures of their own.
    """

    tables: tuple[Table, ...]
    problems: tuple[str, ...]
    files: tuple[Path, ...] = field(default=())
    replays: tuple[ReplayTable, ...] = field(default=())
    quality: tuple[QualityTable, ...] = field(default=())
    batches: tuple[BatchTable, ...] = field(default=())
    samples: tuple[SampleTable, ...] = field(default=())
    better: tuple[ImprovementTable, ...] = field(default=())
    pictures: tuple[Picture, ...] = field(default=(), repr=False)
    left_out: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        for table in self.tables:
            yield rich_table(table, console, options.max_width)
            for note in _notes(table):
                yield Text(note, style="yellow")
        for sample in self.samples:
            yield rich_samples(sample, options.max_width)
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
        parts += [improvement_markdown(table) for table in self.better]
        parts += [sample_markdown(table) for table in self.samples]
        parts += [replay_markdown(replay) for replay in self.replays]
        parts += [quality_markdown(table) for table in self.quality]
        parts += [batch_markdown(table) for table in self.batches]
        if self.problems:
            parts.append("## Problems\n\n" + "\n".join(f"- {problem}" for problem in self.problems))
        parts += [FIGURES_LEFT_OUT.format(self.left_out)] if self.left_out else []
        parts += [f"![{one.path.stem}](figures/{one.path.name})" for one in self.pictures]
        return "\n\n".join(parts) + "\n"

    def csv(self) -> str:
        """The content of ``comparison.csv``: SI units; measured and simulated figures in columns of their own."""
        kinds = sorted({table.setting.kind for table in self.tables})
        replayed = (*(CSV_NAMES if self.replays else ()), *(QUALITY_NAMES if self.quality or self.samples else ()))
        names = [f"{kind}_{metric.name}{end}" for kind in kinds for metric in METRICS for end in ("", "_ci95")]
        gained = csv_names(kinds) if self.better else ()
        fixed = [
            "kind",
            "workload",
            "model",
            "hardware",
            "knobs",
            "system",
            "seeds",
            "requests",
            "failed",
            "notes",
            "version",
        ]
        out = io.StringIO()
        writer = csv.DictWriter(out, [*fixed, *names, *gained, *replayed], restval="", lineterminator="\n")
        writer.writeheader()
        better = {table.setting: table for table in self.better}
        writer.writerows(_csv_row(table, row, better.get(table.setting)) for table in self.tables for row in table.rows)
        writer.writerows(row for replay in self.replays for row in replay.csv_rows())
        writer.writerows(row for table in self.quality for row in quality_rows(table))
        writer.writerows(row for table in self.samples for row in sample_rows(table))
        return out.getvalue()


def compare(
    folders: Sequence[Path], out: Path, figures: bool | Literal["all"] = True, baseline: str | None = None
) -> Comparison:
    """Compare the runs in ``folders``; write ``comparison.md``, ``.csv``, ``.html`` and ``figures/*.png`` into ``out``.

    Only ``summary.json``, the Parquet files and, for what a run was configured with, ``.hydra/config.yaml`` are read. A
    folder without a readable run is a problem that is reported, not an error. Runs that differ only in their seed
    share a row.

    Parameters
    ----------
    figures: False: none; True: of many settings only some get the figures that look into single requests; "all": each.
    baseline: the row that improvements are counted from, see :func:`improvements`.

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
    samples, unread = sample_tables(groups)
    problems += [*unreadable, *unread]
    problems += [problem for rows in groups.values() for problem in _unequal_workloads(rows)]
    tables = tuple(make_table(setting, with_regret(rows)) for setting, rows in groups.items())
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    better = tuple(improvements(tables, baseline))
    gallery = Gallery()
    if figures:
        found = (tables, better, replays, judged, samples, batches)
        gallery = draw_all(runs, *found, folder=out / "figures", every=figures == "all")
    comparison = Comparison(
        tables,
        (*problems, *gallery.problems),
        tuple(one.path for one in gallery.pictures),
        replays,
        tuple(judged),
        batches,
        tuple(samples),
        better,
        tuple(gallery.pictures),
        gallery.left_out,
    )
    if not (tables or replays or judged or problems):  # a task with a report of its own
        return comparison
    texts = {
        out / "comparison.md": comparison.markdown(),
        out / "comparison.csv": comparison.csv(),
        out / "comparison.html": render_page(comparison),
    }
    for path, text in texts.items():
        replace_text(path, text)
    return replace(comparison, files=(*texts, *comparison.files))


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


def _markdown_table(table: Table) -> str:
    header = ["system", *(f"{title} [{unit}]" for title, unit in table.headers)]
    lines = [f"## {table.setting}", "", _line(header), _line(["---", *["---:"] * len(table.headers)])]
    for row, cells in zip(table.rows, table.cells, strict=True):
        lines.append(_line([marked_label(row), *(cell.marked("**{}**") for cell in cells)]))
    lines += ["", table.caption, *(f"\n- {note}" if i == 0 else f"- {note}" for i, note in enumerate(_notes(table)))]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _csv_row(table: Table, row: Row, better: ImprovementTable | None) -> dict[str, object]:
    setting, info = table.setting, row.runs[0].info
    shown: dict[str, object] = {
        "kind": setting.kind,
        "workload": setting.workload,
        "model": setting.model,
        "hardware": setting.hardware,
        "knobs": setting.knobs,
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
    shown |= {} if better is None else better.csv_figures(row.label)
    return shown
