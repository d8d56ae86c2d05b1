"""Least recently used."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import RunView, ScoredEviction, register


@register("eviction", "lru")
@dataclass
class LRU(ScoredEviction):
    """The run whose last user finished longest ago leaves first, its tail pages first.

    This is vLLM V1's free queue: blocks enter at their release, the last blocks of a request before its first.
    """

    def score(self, run: RunView) -> float:
        return run.last_use
