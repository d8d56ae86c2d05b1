"""The tables on trial: batches that are in none of them, as measured and as the simulator times them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..execution.contract import Batch, Executor, Segment
from ..workloads.tokens import IdLog
from .design import Probe
from .engine_time import EngineTime
from .steps import midmean


@dataclass(frozen=True, slots=True)
class Check:
    """A batch and its seconds, measured and simulated."""

    probe: Probe
    measured_s: float
    simulated_s: float

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return self.simulated_s / self.measured_s - 1.0


def check_tables(simulator: Executor, times_s: Mapping[Probe, Sequence[float]], engine: EngineTime) -> list[Check]:
    """Every mixed batch of ``times_s`` on ``simulator``, less its ``engine``, which no batch alone takes."""
    log, table = IdLog(np.zeros(0, np.int32)), np.zeros(0, np.int32)
    found = []
    for probe, taken in times_s.items():
        if probe.operator == "mixed":
            parts = [Segment(-1, log, p.context, p.length, table, sample=p.sample) for p in probe.segments()]
            prompts = sum(part.length > 1 for part in parts)
            outside_s = engine.iteration_s + engine.sequence_s * len(parts) + engine.prompt_s * prompts
            found.append(Check(probe, midmean(taken), simulator.run(Batch(parts)).duration_s - outside_s))
    return found
