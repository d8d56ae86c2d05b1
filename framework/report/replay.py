"""Replays: hit ratios by policy and capacity, and how much room the best would leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .numbers import short
from .rows import Estimate, estimate
from .runs import Run
from .table import Cell

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_WIDE = 110
BELADY, INFINITE = "belady", "infinite cache"
FIGURES = ("accesses", "hits", "hit_ratio", "evictions", "refused_requests")
REGRETS = ("regret_belady", "regret_infinite")

BySeed = dict[int, dict[str, float]]


@dataclass(frozen=True, slots=True)
class ReplaySetting:
    """What replays must share to stand in one table; ``knobs``: of the workload, as given at the start."""

    workload: str
    semantics: str
    page_tokens: int
    knobs: str

    def __str__(self) -> str:
        unit = "blocks one by one" if self.semantics == "block" else "prefixes"
        given = self.knobs and f", {self.knobs}"
        return f"{self.workload}, replayed by {unit}, pages of {self.page_tokens} tokens{given}"


@dataclass(frozen=True, slots=True)
class ReplayRow:
    """A policy. ``figures[capacity][seed]``: those of its replay, ratios as shares of 1."""

    label: str
    oracle: bool
    figures: Mapping[int, BySeed]

    def estimate(self, capacity: int, name: str) -> Estimate | None:
        """Mean over seeds of a figure, None where it is not known."""
        values = [by[name] for by in self.figures.get(capacity, {}).values() if name in by]
        return estimate(values) if values else None

    def mean(self, capacities: Sequence[int], name: str) -> float | None:
        """Mean over ``capacities`` of a figure, None where one is not known."""
        found = [self.estimate(capacity, name) for capacity in capacities]
        known = [one.mean for one in found if one is not None]
        return sum(known) / len(known) if known and len(known) == len(found) else None


@dataclass(frozen=True, slots=True)
class ReplayTable:
    """All policies that replayed one workload; oracles and the infinite cache last."""

    setting: ReplaySetting
    rows: tuple[ReplayRow, ...]
    capacities: tuple[int, ...]
    runs: tuple[Run, ...] = field(repr=False)

    @property
    def caption(self) -> str:
        """n, seeds, version, and what the columns mean."""
        seeds = sorted({int(run.info["seed"] or 0) for run in self.runs})
        counts = sorted({int(run.figure("workload", "requests") or 0) for run in self.runs})
        versions = ", ".join(sorted({str(run.info["version"]) for run in self.runs}))
        room = "Below ...: hit ratio that Belady's policy, or a cache that never evicts, has more"
        over = ", mean over the capacities" if len(self.capacities) > 1 else ""
        said = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        best = " Bold: best policy." if sum(not row.oracle for row in self.rows) > 1 else ""
        return f"n = {', '.join(map(str, counts))} requests, {said}; kvarena {versions}. {room}{over}.{best}"

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Titles and units of the columns after the policy's name."""
        ratios = [(f"{capacity:,} pages", "% hits") for capacity in self.capacities]
        counts = [("hits", "pages"), ("evictions", "pages")] if len(self.capacities) == 1 else []
        return [*ratios, *counts, ("below belady", "points"), ("below infinite", "points")]

    def cells(self) -> list[list[Cell]]:
        """The cells of each row."""
        best = {capacity: self._best(capacity) for capacity in self.capacities}
        return [self._row(row, best) for row in self.rows]

    def _best(self, capacity: int) -> float | None:
        found = [one.mean for row in self.rows if not row.oracle and (one := row.estimate(capacity, "hit_ratio"))]
        return max(found) if len(set(found)) > 1 else None

    def _row(self, row: ReplayRow, best: Mapping[int, float | None]) -> list[Cell]:
        cells = []
        for capacity in self.capacities:
            found = row.estimate(capacity, "hit_ratio")
            text = "-" if found is None else f"{100 * found.mean:.2f}"
            if found is not None and found.half_width is not None:
                text += f" ± {100 * found.half_width:.2f}"
            cells.append(Cell(text, found is not None and not row.oracle and found.mean == best[capacity]))
        if len(self.capacities) == 1:
            counts = [row.estimate(self.capacities[0], name) for name in ("hits", "evictions")]
            cells += [Cell("-" if count is None else short(count.mean)) for count in counts]
        regrets = [row.mean(self.capacities, name) for name in REGRETS]
        return cells + [Cell("-" if regret is None else f"{100 * regret:.2f}") for regret in regrets]

    def csv_rows(self) -> Iterator[dict[str, object]]:
        """A row per policy and capacity for ``comparison.csv``."""
        seeds = " ".join(str(seed) for seed in sorted({int(run.info["seed"] or 0) for run in self.runs}))
        for row in self.rows:
            for capacity in row.figures:
                found = {name: row.estimate(capacity, name) for name in (*FIGURES, *REGRETS)}
                yield {
                    "kind": "replayed",
                    "workload": self.setting.workload,
                    "knobs": self.setting.knobs,
                    "system": row.label,
                    "seeds": seeds,
                    "replayed_semantics": self.setting.semantics,
                    "replayed_page_tokens": self.setting.page_tokens,
                    "replayed_capacity_pages": capacity,
                    **{f"replayed_{name}": "" if one is None else one.mean for name, one in found.items()},
                    "notes": "oracle: sees the future, not ranked" if row.oracle else "",
                    "version": self.runs[0].info["version"],
                }


CSV_NAMES = (
    *("replayed_semantics", "replayed_page_tokens", "replayed_capacity_pages"),
    *(f"replayed_{name}" for name in (*FIGURES, *REGRETS)),
)


def is_replay(run: Run) -> bool:
    """``run`` is a finished ``task=replay``."""
    return isinstance(run.summary.get("replay"), dict)


def replay_tables(runs: Sequence[Run]) -> list[ReplayTable]:
    """A table for each workload and semantics that was replayed; runs of one policy are put together."""
    groups: dict[ReplaySetting, list[Run]] = {}
    for run in runs:
        if run.ok and is_replay(run):
            groups.setdefault(_setting(run), []).append(run)
    return [_table(setting, own) for setting, own in groups.items()]


def _setting(run: Run) -> ReplaySetting:
    replay = run.summary["replay"]
    given = [word for word in run.info.get("overrides", []) if word.startswith("workload.") and ".path=" not in word]
    knobs = " ".join(sorted(given))
    return ReplaySetting(str(run.info["workload"]), replay["semantics"], int(replay["page_tokens"]), knobs)


def _label(run: Run) -> str:
    given = [word for word in run.info.get("overrides", []) if word.startswith("eviction.")]
    return " ".join([str(run.info["policies"]["eviction"]["name"]), *sorted(given)])


def _table(setting: ReplaySetting, runs: Sequence[Run]) -> ReplayTable:
    figures: dict[str, dict[int, BySeed]] = {}
    oracles: set[str] = set()
    for run in runs:
        label, seed = _label(run), int(run.info["seed"] or 0)
        oracles |= {label} if run.oracle else set()
        for point in run.summary["replay"]["curve"]:
            _put(figures.setdefault(label, {}), point, seed, point)
            _put(
                figures.setdefault(INFINITE, {}),
                point,
                seed,
                {"hit_ratio": run.summary["replay"]["infinite_hit_ratio"]},
            )
            if point.get("belady_hits") is not None:
                beside = {"hit_ratio": point["belady_hit_ratio"], "hits": point["belady_hits"]}
                _put(figures.setdefault(BELADY, {}), point, seed, {**beside, "accesses": point["accesses"]})
    for label, rows in figures.items():
        _add_regrets(rows, figures, REGRETS[label == INFINITE :])
    oracles |= {BELADY, INFINITE}
    order = sorted(figures, key=lambda label: (label in oracles, label == INFINITE))
    capacities = sorted({capacity for rows in figures.values() for capacity in rows})
    shown = tuple(ReplayRow(label, label in oracles, dict(sorted(figures[label].items()))) for label in order)
    return ReplayTable(setting, shown, tuple(capacities), tuple(runs))


def _put(rows: dict[int, BySeed], point: Mapping[str, Any], seed: int, found: Mapping[str, Any]) -> None:
    known = {name: float(found[name]) for name in FIGURES if found.get(name) is not None}
    kept = rows.setdefault(int(point["capacity"]), {}).setdefault(seed, {})
    kept.update({name: value for name, value in known.items() if name not in kept})


def _add_regrets(
    rows: dict[int, BySeed], figures: Mapping[str, Mapping[int, BySeed]], names: Sequence[str] = REGRETS
) -> None:
    """How much lower the hit ratio is than Belady's, and than that of a cache that never evicts."""
    for name in names:
        best = BELADY if name == "regret_belady" else INFINITE
        for capacity, by_seed in rows.items():
            for seed, own in by_seed.items():
                other = figures.get(best, {}).get(capacity, {}).get(seed, {})
                if "hit_ratio" in own and "hit_ratio" in other:
                    own[name] = other["hit_ratio"] - own["hit_ratio"]


def markdown(table: ReplayTable) -> str:
    """The table for ``comparison.md``."""
    header = ["policy", *(f"{title} [{unit}]" for title, unit in table.headers)]
    lines = [f"## {table.setting}", "", _line(header), _line(["---", *["---:"] * len(table.headers)])]
    for row, cells in zip(table.rows, table.cells(), strict=True):
        lines.append(_line([shown_label(row), *(cell.marked("**{}**") for cell in cells)]))
    return "\n".join([*lines, "", table.caption])


def shown_label(row: ReplayRow) -> str:
    """The label, marked where it sees the future."""
    return f"{row.label} (oracle)" if row.oracle and row.label != INFINITE else row.label


def rich_replay(table: ReplayTable, width: int) -> RichTable:
    """The table for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(box=SIMPLE_HEAD, padding=0 if width < _WIDE else (0, 1), collapse_padding=True, show_edge=False)
    shown.title, shown.title_justify = escape(str(table.setting)), "left"
    shown.caption, shown.caption_justify = escape(table.caption), "left"
    shown.add_column("policy", overflow="fold")
    for title, unit in table.headers:
        shown.add_column(escape("\n".join([*title.split(), unit])), justify="right")
    for row, cells in zip(table.rows, table.cells(), strict=True):
        marked = [cell.marked("[bold green]{}[/bold green]") for cell in cells]
        shown.add_row(escape(shown_label(row)), *marked, style="dim" if row.oracle else None)
    return shown


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
