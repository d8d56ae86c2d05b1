"""Systems over the rate at which conversations arrive, from runs that differ in ``workload.rate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .rows import Row
from .runs import Run, Setting

KEY = "workload.rate"


@dataclass(frozen=True, slots=True)
class Rung:
    """One system at one rate: ``runs`` one per seed, in order of seeds."""

    rate: float
    runs: tuple[Run, ...]

    @property
    def saturated(self) -> bool:
        """In at least one seed the queue grew without bound."""
        return any(run.info.get("saturated") for run in self.runs)

    def values(self, *path: str) -> NDArray[np.float64]:
        """The figure of each seed, NaN where it was not measured."""
        found = (run.figure(*path) for run in self.runs)
        return np.array([np.nan if one is None else one for one in found], np.float64)


@dataclass(frozen=True, slots=True)
class Climber:
    """One system over the rates: ``rungs`` ascending; ``row``: as it is named and coloured."""

    row: Row
    rungs: tuple[Rung, ...]


@dataclass(frozen=True, slots=True)
class Ladder:
    """The systems of one setting over at least two rates. ``slo_ttft_s``: the limit of good service, None: none."""

    setting: Setting
    climbers: tuple[Climber, ...]
    slo_ttft_s: float | None


def ladders(runs: Sequence[Run]) -> list[Ladder]:
    """A ladder for each setting in which the command line varied the rate."""
    settings: dict[Setting, dict[str, dict[float, list[Run]]]] = {}
    for run in runs:
        if run.ok and (rate := _rate(run)) is not None and run.figure("latency", "ttft_s", "count"):
            systems = settings.setdefault(run.setting.without(KEY), {})
            systems.setdefault(run.label, {}).setdefault(rate, []).append(run)
    found = [_ladder(setting, systems) for setting, systems in settings.items()]
    return [one for one in found if any(len(climber.rungs) > 1 for climber in one.climbers)]


def _rate(run: Run) -> float | None:
    try:
        return float(run.knob(KEY) or "")
    except ValueError:
        return None


def _ladder(setting: Setting, systems: dict[str, dict[float, list[Run]]]) -> Ladder:
    climbers = []
    for label, by_rate in systems.items():
        rungs = tuple(Rung(rate, tuple(sorted(by_rate[rate], key=_seed))) for rate in sorted(by_rate))
        climbers.append(Climber(Row(label, label, rungs[0].runs), rungs))
    limits = {slo_ttft_s(climber.rungs[0].runs[0]) for climber in climbers}
    return Ladder(setting, tuple(climbers), limits.pop() if len(limits) == 1 else None)


def _seed(run: Run) -> int:
    return int(run.info["seed"] or 0)


def slo_ttft_s(run: Run) -> float | None:
    """The limit that the run was configured with: seconds to the first token."""
    slo = run.config().get("task", {}).get("slo") or {}
    value = slo.get("ttft_s")
    return float(value) if isinstance(value, int | float) else None
