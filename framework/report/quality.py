"""What policies cost in quality: runs of ``task=quality`` put together, by policy, budget and task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..quality.intervals import Bootstrap, Interval
from ..quality.results import ROWS
from .runs import Run, RunError

FULL, RANDOM = "full cache", "random"
ALL, TEXT = "all tasks", "perplexity"
MEASURES = ("accuracy", "f1", "kl_nats", "top1", "attention_error", "recall", "bits_per_token", "kv_share")
REFERENCE_BITS = "reference_bits_per_token"

Unit = tuple[int, str, int, int]  # seed, task, length, episode
ByUnit = Mapping[Unit, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class QualitySetting:
    """What runs must share to stand in one table. ``knobs``: of task, memory and backend, as given at the start."""

    model: str
    protocol: str
    lengths: tuple[int, ...]
    knobs: str

    def __str__(self) -> str:
        lengths = self.lengths and f", {', '.join(f'{length:,}' for length in self.lengths)} tokens"
        given = self.knobs and f", {self.knobs}"
        return f"quality, {self.model}, {self.protocol.replace('_', ' ')}{lengths or ''}{given}"


@dataclass(frozen=True, slots=True)
class QualityRow:
    """A policy at one budget. ``budget``: as it was given, None: the policy's own knobs say it; ``units``: the figures
    of each episode; ``draws``: that all rows of a table share."""

    label: str
    oracle: bool
    budget: float | None
    units: ByUnit = field(repr=False)
    draws: Bootstrap = field(repr=False)
    _known: dict[tuple[str, str], Interval | None] = field(default_factory=dict, repr=False, compare=False)

    def values(self, task: str, measure: str) -> dict[Unit, float]:
        """A figure by episode, of one task or of all that have right answers, where it was measured."""
        found = {unit: figures.get(measure) for unit, figures in self.units.items() if _counts(unit, task)}
        return {unit: value for unit, value in found.items() if value is not None and not np.isnan(value)}

    def interval(self, task: str, measure: str) -> Interval | None:
        """Its mean over episodes and seeds, with a 95 % interval; bits are added up before dividing."""
        if (task, measure) not in self._known:
            values = self.values(task, measure)
            weights = [self.units[unit]["steps"] for unit in values] if measure.endswith("bits_per_token") else None
            self._known[task, measure] = self.draws.interval(list(values.values()), weights)
        return self._known[task, measure]

    def against(self, other: QualityRow, task: str, measure: str) -> float | None:
        """The mean difference to ``other`` over the episodes that both have; 0 where it is not significant (95 %,
        paired), None where it cannot be told."""
        own, beside = self.values(task, measure), other.values(task, measure)
        both = sorted(own.keys() & beside.keys())
        one, two = np.array([own[unit] for unit in both]), np.array([beside[unit] for unit in both])
        found = self.draws.differs(one, two)
        return None if found is None else float((one - two).mean()) if found else 0.0


def _counts(unit: Unit, task: str) -> bool:
    return unit[1] != TEXT if task == ALL else unit[1] == task


@dataclass(frozen=True, slots=True)
class QualityTable:
    """All policies of one setting: the full cache first, oracles last.

    Attributes
    ----------
    tasks: in the runs' order. budgets: that were given, ascending.
    """

    setting: QualitySetting
    rows: tuple[QualityRow, ...]
    tasks: tuple[str, ...]
    budgets: tuple[float, ...]
    runs: tuple[Run, ...] = field(repr=False)

    @property
    def labels(self) -> list[str]:
        """Of the policies, in order."""
        return list(dict.fromkeys(row.label for row in self.rows))

    def row(self, label: str, budget: float | None) -> QualityRow | None:
        """The row of a policy at a budget."""
        return next((row for row in self.rows if (row.label, row.budget) == (label, budget)), None)

    def of(self, label: str) -> list[QualityRow]:
        """The rows of a policy, by rising budget."""
        found = [row for row in self.rows if row.label == label]
        return sorted(found, key=lambda row: -1.0 if row.budget is None else row.budget)

    def metric(self, task: str) -> str | None:
        """What says how right a reply is in ``task``; None: it is the right one word for word, or there is none."""
        points = (point for run in self.runs for point in run.summary["quality"]["points"])
        return next((told for point in points if (told := point.get("tasks", {}).get(task, {}).get("metric"))), None)

    @property
    def asks(self) -> bool:
        """Some task has right answers."""
        return any(task != TEXT for task in self.tasks)

    @property
    def caption(self) -> str:
        """n, seeds and version."""
        seeds = sorted({int(run.info["seed"] or 0) for run in self.runs})
        n = max((len(row.units) for row in self.rows), default=0)
        versions = ", ".join(sorted({str(run.info["version"]) for run in self.runs}))
        return f"n = {n} episodes, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}; kvarena {versions}"


def is_quality(run: Run) -> bool:
    """``run`` is a finished ``task=quality``."""
    return "points" in (run.summary.get("quality") or {})


def quality_tables(runs: Sequence[Run]) -> tuple[list[QualityTable], list[str]]:
    """A table for each setting, and what could not be read; runs that differ only in their seed are put together."""
    groups: dict[QualitySetting, list[Run]] = {}
    for run in runs:
        if run.ok and is_quality(run):
            groups.setdefault(_setting(run), []).append(run)
    tables, problems = [], []
    for setting, own in groups.items():
        try:
            tables.append(_table(setting, own))
        except RunError as error:
            problems.append(f"no quality table for {setting}: {error}")
    return tables, problems


def _setting(run: Run) -> QualitySetting:
    quality = run.summary["quality"]
    given = [word for word in run.info.get("overrides", []) if word.split(".")[0] in ("task", "memory", "backend")]
    hidden = ("task.budgets=", "backend.decoupled=", "task.lengths=", "task.protocol=", "task.text=", "task.files=")
    knobs = " ".join(sorted(word for word in given if not word.startswith(hidden)))
    return QualitySetting(str(run.info["model"]), quality["protocol"], tuple(quality["lengths"]), knobs)


def _labels(runs: Sequence[Run]) -> list[str]:
    """The policy of each run and its knobs as given at the start; what else the start says where runs of one policy
    differ in it: metadata in the budget, positions, the system."""
    names, beside = [_name(run) for run in runs], [_beside(run) for run in runs]
    labels = []
    for name, own in zip(names, beside, strict=True):
        others = [other for other_name, other in zip(names, beside, strict=True) if other_name == name]
        told = [words[0] for words in zip(own, *others, strict=True) if len(set(words)) > 1]
        labels.append(" ".join([name, *filter(None, told)]))
    return labels


def _name(run: Run) -> str:
    chosen = dict(part.partition("=")[::2] for part in str(run.info["system"]).split("+"))  # a policy may have options
    point = run.summary["quality"]["points"][0]
    parts = [chosen.get(family, point[family]) for family in ("truncation", "compression")]
    name = " + ".join(part for part in parts if part != "none") or "none"
    given = [word for word in run.info.get("overrides", []) if word.split(".")[0] in ("truncation", "compression")]
    hidden = ("truncation.budget_ratio=", "truncation.counts_metadata=")
    knobs = sorted(word.partition(".")[2] for word in given if not word.startswith(hidden))
    return " ".join([name, *knobs])


def _beside(run: Run) -> tuple[str, str, str]:
    given = run.info.get("overrides", [])
    counts = "" if "truncation.counts_metadata=true" not in given else "counts_metadata"
    decoupled = "decoupled" if "backend.decoupled=true" in given else ""
    parts = str(run.info["system"]).split("+")
    base = "+".join(part for part in parts if not part.startswith(("truncation=", "compression=")))
    return counts, decoupled, f"on {base}"


def _given_budget(run: Run) -> float | None:
    """The budget that the command line gave to the policy itself."""
    key = "truncation.budget_ratio="
    words = [word.removeprefix(key) for word in run.info.get("overrides", []) if word.startswith(key)]
    try:
        return float(words[-1]) if words else None
    except ValueError:  # null
        return None


def _table(setting: QualitySetting, runs: Sequence[Run]) -> QualityTable:
    found: dict[tuple[str, float | None], dict[Unit, Mapping[str, float]]] = {}
    full: dict[Unit, Mapping[str, float]] = {}
    oracles: set[str] = set()
    tasks: dict[str, None] = {}
    for run, label in zip(runs, _labels(runs), strict=True):
        oracles |= {label} if run.oracle else set()
        for budget, unit, figures in units(run):
            tasks.setdefault(unit[1])
            found.setdefault((label, _given_budget(run) if budget is None else budget), {})[unit] = figures
            full.setdefault(unit, _reference(figures))
    budgets = sorted({budget for _, budget in found if budget is not None})
    draws = Bootstrap()
    rows = [QualityRow(label, label in oracles, budget, own, draws) for (label, budget), own in found.items()]
    rows.sort(key=lambda row: (row.oracle, row.label == RANDOM))
    whole = (
        [QualityRow(FULL, False, None, full, draws)] if any("bits_per_token" in one for one in full.values()) else []
    )
    return QualityTable(setting, (*whole, *rows), tuple(tasks), tuple(budgets), tuple(runs))


def _reference(figures: Mapping[str, float]) -> Mapping[str, float]:
    """What the same rows tell of the full cache."""
    known = {"accuracy": "reference_accuracy", "bits_per_token": "reference_bits_per_token"}
    found = {name: figures[source] for name, source in known.items() if not np.isnan(figures.get(source, np.nan))}
    return {**found, "steps": figures["steps"], "kv_share": 1.0} if found else {"steps": figures["steps"]}


def units(run: Run) -> Iterator[tuple[float | None, Unit, dict[str, float]]]:
    """The figures of each budget and episode: means over turns of what are means over steps.

    Raises
    ------
    RunError
        If the rows are missing or not readable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = ["budget", "task", "length", "episode"]
    by_step = ("kl_nats", "top1", "attention_error", "recall", "kv_share", "exact", "reference_exact", "f1")
    path = run.folder / ROWS
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path}: not readable: {error}") from error
    sums = [("bits", "sum"), ("reference_bits", "sum"), ("step", "count")]
    turns = table.group_by([*keys, "turn"]).aggregate([*((name, "mean") for name in by_step), *sums])
    means = [(f"{name}_mean", "mean") for name in by_step]
    episodes = turns.group_by(keys).aggregate([*means, *((f"{name}_{how}", "sum") for name, how in sums)])
    seed = int(run.info["seed"] or 0)
    for row in episodes.to_pylist():
        yield row["budget"], (seed, row["task"], row["length"], row["episode"]), _figures(row)


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    def mean(name: str) -> float:
        value = row[f"{name}_mean_mean"]
        return float("nan") if value is None else float(value)

    steps = float(row["step_count_sum"])
    bits, full = row["bits_sum_sum"], row["reference_bits_sum_sum"]
    return {
        "steps": steps,
        "accuracy": mean("exact"),
        "reference_accuracy": mean("reference_exact"),
        "bits_per_token": float("nan") if bits is None else bits / steps,
        "reference_bits_per_token": float("nan") if full is None else full / steps,
        **{name: mean(name) for name in ("f1", "kl_nats", "top1", "attention_error", "recall", "kv_share")},
    }
