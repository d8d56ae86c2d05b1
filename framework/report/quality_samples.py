"""What serving cost in quality, where runs judged a sample of what they served: a table and a figure beside speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..quality.intervals import Bootstrap
from ..quality.results import SERVED
from .drawing import Picture, finish, one_each
from .quality import REFERENCE_BITS, QualityRow, Unit, units
from .quality_tables import Grid, Measure, cells, csv_figures, markdown_grid, rich_grid
from .rows import Row
from .runs import Run, RunError, Setting
from .style import look
from .table import Cell, describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table as RichTable

ROUNDING = 1e-9  # nats: of two runs that computed the same in another order
_FLOOR = 1e-6  # nats: where a logarithmic axis ends
_SPEED = ("throughput", "output_tokens_per_s")
_KL = Measure("kl_nats", "KL", "nats", "min")
_TOP1 = Measure("top1", "top-1", "% equal", "max", 100, 1)
_BITS = (
    Measure("bits_per_token", "reply", "bits/token", ""),
    Measure(REFERENCE_BITS, "by the full cache", "bits/token", ""),
)


@dataclass(frozen=True, slots=True)
class SampleTable:
    """Runs of one setting that judged a sample. ``rows``: their figures by conversation, beside what served them."""

    setting: Setting
    rows: tuple[tuple[Row, QualityRow], ...]

    @property
    def title(self) -> str:
        """What is shown."""
        return f"quality of what was served: {self.setting}"

    @property
    def caption(self) -> str:
        """How many conversations were judged, and what the figures are."""
        best = " Bold: best." if len(self.rows) > 1 else ""
        several = any(len(judged.units) > 1 for _, judged in self.rows)
        spread = " ±: half a 95 % interval (bootstrap over conversations)." if several else ""
        return f"{self.sizes}.{best}{spread}"

    @property
    def sizes(self) -> str:
        """How many conversations were judged, and against what."""
        counts = sorted({len(judged.units) for _, judged in self.rows})
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"n = {n} judged conversations, each against the full cache on the replies that were given"


def sample_tables(groups: Mapping[Setting, Sequence[Row]]) -> tuple[list[SampleTable], list[str]]:
    """A table for each setting with runs that judged a sample, and what could not be read."""
    tables, problems = [], []
    for setting, rows in groups.items():
        draws = Bootstrap()
        try:
            found = [(row, _judged(row, draws)) for row in rows if any(map(_sampled, row.runs))]
        except RunError as error:
            problems.append(f"no quality of what was served for {setting}: {error}")
            continue
        if found:
            tables.append(SampleTable(setting, tuple(found)))
    return tables, problems


def _sampled(run: Run) -> bool:
    return run.ok and "share" in (run.summary.get("quality") or {})


def _judged(row: Row, draws: Bootstrap) -> QualityRow:
    found: dict[Unit, Mapping[str, float]] = {}
    for run in filter(_sampled, row.runs):
        for _, unit, figures in units(run):
            differs = figures["kl_nats"] > ROUNDING
            found[unit] = {**figures, "kl_nats": figures["kl_nats"] if differs else 0.0}
    return QualityRow(row.label, row.oracle, None, found, draws)


def grid(table: SampleTable) -> Grid:
    """Speed, then what it cost."""
    judged = [one for _, one in table.rows]
    speeds = [row.estimate(_SPEED) for row, _ in table.rows]
    columns = [[Cell("-" if speed is None else f"{speed.mean:,.0f}") for speed in speeds]]
    columns += [cells(judged, measure, SERVED) for measure in (_KL, _TOP1, *_BITS)]
    headers = (("throughput", "tokens/s"), *((one.title, one.unit) for one in (_KL, _TOP1, *_BITS)))
    named = [(f"{one.label} (oracle)" if one.oracle else one.label, one.oracle) for one in judged]
    rows = tuple((*name, found) for name, found in zip(named, zip(*columns, strict=True), strict=True))
    return Grid(table.title, headers, rows)


def markdown(table: SampleTable) -> str:
    """The table for ``comparison.md``."""
    return f"{markdown_grid(grid(table), 'system')}\n\n{table.caption}"


def rich_samples(table: SampleTable, width: int) -> RichTable:
    """The table for a terminal."""
    return rich_grid(grid(table), width, table.caption, "system")


def csv_rows(table: SampleTable) -> Iterator[dict[str, object]]:
    """A row for each system for ``comparison.csv``."""
    for row, judged in table.rows:
        yield {
            "kind": table.setting.kind,
            "workload": table.setting.workload,
            "model": table.setting.model,
            "hardware": table.setting.hardware,
            "knobs": table.setting.knobs,
            "system": row.label,
            "seeds": " ".join(str(run.info["seed"]) for run in row.runs),
            **csv_figures(judged, SERVED),
            "notes": "oracle: sees the future, not ranked" if row.oracle else "",
            "version": row.runs[0].info["version"],
        }


def draw_samples(tables: Sequence[SampleTable], folder: Path) -> list[Picture]:
    """Draw quality beside speed, for each table with several systems.

    Raises
    ------
    OSError
        If a file cannot be written.
    """

    def picture(table: SampleTable, path: Path) -> Picture:
        about = describe(table.setting, [row for row, _ in table.rows])
        lines = f"Lines: 95 % intervals over conversations. KL below {_FLOOR:g} nats is drawn there."
        text = f"{about}. {table.sizes}. {lines}"
        return finish(_draw(table), path, "Quality of what was served", text, table.title)

    return one_each([table for table in tables if len(table.rows) > 1], folder, "quality_served.png", picture)


def _draw(table: SampleTable) -> Figure:
    """A line for each system, the first on top; a panel for each figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = 1.7 + 0.3 * len(table.rows)
    figure = Figure(figsize=(9.6, height))
    FigureCanvasAgg(figure)
    titles = ("KL to the full cache, nats", "top-1: choices that agree", "output tokens per second")
    place = {"bottom": 0.95 / height, "top": 1 - 0.4 / height}
    panels = figure.subplots(1, 3, sharey=True, gridspec_kw={"left": 0.2, "right": 0.98, "wspace": 0.12, **place})
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
    _intervals(panels[0], table, _KL, _FLOOR)
    panels[0].set_xscale("log")
    panels[0].set_xlim(left=_FLOOR * 0.7)
    _intervals(panels[1], table, _TOP1, 0.0)
    panels[1].xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _speeds(panels[2], table)
    panels[0].set_yticks(range(len(table.rows)), [judged.label for _, judged in table.rows])
    panels[0].set_ylim(len(table.rows) - 0.4, -0.6)
    return figure


def _intervals(axes: Axes, table: SampleTable, measure: Measure, floor: float) -> None:
    for place, (row, judged) in enumerate(table.rows):
        if (one := judged.interval(SERVED, measure.name)) is None:
            continue
        colour = "#111111" if row.oracle else look(row.system).colour
        ends = [max(floor, one.mean if end is None else end) for end in (one.low, one.high)]
        axes.plot(ends, [place, place], color=colour, linewidth=1.4)
        axes.plot([max(floor, one.mean)], [place], color=colour, marker="o", markersize=5)


def _speeds(axes: Axes, table: SampleTable) -> None:
    for place, (row, _) in enumerate(table.rows):
        if (speed := row.estimate(_SPEED)) is not None:
            colour = "#111111" if row.oracle else look(row.system).colour
            axes.barh(place, speed.mean, color=colour, height=0.55, xerr=speed.half_width, error_kw={"linewidth": 1.0})
