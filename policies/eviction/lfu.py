"""Least frequently used."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import RunView, ScoredEviction, register


@register("eviction", "lfu")
@dataclass
class LFU(ScoredEviction):
    """The run that fewest requests used leaves first; among equals the least recently used.

    Counts start again when a run that had left is stored anew.
    """

    def score(self, run: RunView) -> tuple[float, ...]:
        return (run.uses, run.last_use)
