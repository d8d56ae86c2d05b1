"""What an engine is made of, and what it is computing."""

from __future__ import annotations

from dataclasses import dataclass

from .batching import Work
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
    """What is being computed until ``end_s``. ``loading``: requests that it waits for the loads of."""

    work: list[Work]
    result: StepResult
    steps: int
    end_s: float
    loading: frozenset[int] = frozenset()
