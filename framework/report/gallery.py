"""Every figure that applies to the runs at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .batches import BatchTable, draw_batches
from .curves import draw_miss_ratios
from .drawing import Picture
from .figures import draw_figures
from .improvement import ImprovementTable
from .improvement_figures import draw_improvements
from .ladder import ladders
from .ladder_figures import draw_ladders
from .memory_figures import draw_memory
from .pareto import draw_trades, trades
from .parts import draw_parts
from .quality import QualityTable
from .quality_curves import draw_quality
from .quality_samples import SampleTable, draw_samples
from .replay import ReplayTable
from .runs import Run, RunError, Setting
from .size_figures import draw_size_figures
from .table import Table
from .turn_figures import draw_turns

MOST_SETTINGS = 2  # whose requests are looked into; of more, one is drawn and the others have tables only
MOST_SHOWN = 6


@dataclass(slots=True)
class Gallery:
    """``pictures`` that were drawn; ``problems``: lines about those that could not be; ``left_out``: settings that
    have tables only."""

    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: int = 0

    def settings(self, tables: Sequence[Table], folder: Path, every: bool) -> None:
        """Draw what looks into the requests of single runs: for ``every`` setting, or for one where there are many."""
        shown = tables if every else shown_ones(tables)
        self.left_out = len(tables) - len(shown)
        drawers: tuple[Callable[[Table, Path, bool], list[Picture]], ...] = (
            *(draw_figures, draw_parts, draw_turns, draw_memory),
        )
        for table in shown:
            for draw in drawers:
                try:
                    self.pictures += draw(table, folder, len(tables) > 1)
                except RunError as error:
                    self.problems.append(f"no figures for {table.setting}: {error}")
                    break


def shown_ones(tables: Sequence[Table]) -> list[Table]:
    """Of each workload, model and hardware all of few ``tables``; of many the last one without a saturated row, where
    most happens. At most ``MOST_SHOWN``."""
    families: dict[Setting, list[Table]] = {}
    for table in tables:
        families.setdefault(replace(table.setting, knobs=""), []).append(table)
    shown: list[Table] = []
    for own in families.values():
        calm = [table for table in own if not any(row.saturated for row in table.rows)]
        shown += own if len(own) <= MOST_SETTINGS else [*own, *calm][-1:]
    return shown[:MOST_SHOWN]


def draw_all(
    runs: Sequence[Run],
    tables: Sequence[Table],
    better: Sequence[ImprovementTable],
    replays: Sequence[ReplayTable],
    judged: Sequence[QualityTable],
    samples: Sequence[SampleTable],
    batches: Sequence[BatchTable],
    folder: Path,
    every: bool = False,
) -> Gallery:
    """Draw all figures into ``folder``, those over many settings first.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    gallery = Gallery()
    gallery.pictures += draw_ladders(ladders(runs), folder)
    gallery.pictures += draw_trades(trades(tables), folder)
    gallery.pictures += draw_size_figures(runs, folder)
    gallery.pictures += draw_batches(batches, folder)
    settings = {table.setting for table in (tables if every else shown_ones(tables))}
    gallery.pictures += draw_improvements([one for one in better if one.setting in settings], folder)
    gallery.settings(tables, folder, every)
    gallery.pictures += draw_samples(samples, folder)
    gallery.pictures += draw_miss_ratios(replays, folder)
    gallery.pictures += draw_quality(judged, folder)
    return gallery
