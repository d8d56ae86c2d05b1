"""Least recently used, the tail of a context before its head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...framework.policy import PageTrace, RequestHits, RunView, ScoredEviction, register
from .replays.lists import lru_hits
from .replays.queues import lru_prefix_hits


@register("eviction", "lru")
@dataclass
class LRU(ScoredEviction):
    """The run whose last user finished longest ago leaves first, its tail pages first.

    This is vLLM V1's free queue: blocks enter at their release, the last blocks of a request before its first.
    """

    trims: ClassVar[bool] = True

    def score(self, run: RunView) -> float:
        return run.last_use

    def replay_blocks(self, trace: PageTrace, capacity: int) -> bytearray:
        return lru_hits(trace, capacity)

    def replay_prefixes(self, trace: PageTrace, capacity: int) -> RequestHits:
        return lru_prefix_hits(trace, capacity)
