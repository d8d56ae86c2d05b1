"""What an engine is made of, and what it is computing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from .batching import StepWork
from .execution.contract import StepResult
from .policy import Compression, Prefetch, Scheduling, Truncation, Writeback


@dataclass(frozen=True, slots=True)
class EnginePolicies:
    """The policies of one engine; eviction sits in the store, routing in the session."""

    scheduling: Scheduling
    prefetch: Prefetch
    writeback: Writeback
    truncation: Truncation
    compression: Compression


@dataclass(slots=True)
class Iteration:
    """What is being computed from ``start_s`` until ``end_s``. ``loading``: requests that it waits for the loads of."""

    work: StepWork
    result: StepResult
    steps: int
    start_s: float
    end_s: float
    loading: frozenset[int] = frozenset()

    def ends(self) -> list[tuple[float, int]]:
        """When steps ended, and how many equally long ones until then since the one before."""
        if self.result.steps_s is None:
            return [(self.end_s, self.steps)]
        return [(self.start_s + after_s, 1) for after_s in accumulate(self.result.steps_s)]
