"""Least frequently used, among equals least recently."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import PageTrace, RequestHits, RunView, ScoredEviction, register
from .replays.counts import lfu_hits
from .replays.forest import forest_hits
from .replays.leaves import USE, ValueForest


@register("eviction", "lfu")
@dataclass
class LFU(ScoredEviction):
    """The run that fewest requests used leaves first; among equals the least recently used.

    Counts start again when a run that had left is stored anew.
    """

    def score(self, run: RunView) -> tuple[float, ...]:
        return (run.uses, run.last_use)

    def replay_blocks(self, trace: PageTrace, capacity: int) -> bytearray:
        return lfu_hits(trace, capacity)

    def replay_prefixes(self, trace: PageTrace, capacity: int) -> RequestHits:
        return forest_hits(ValueForest(trace, lambda uses, last: uses * USE + last), trace, capacity)
