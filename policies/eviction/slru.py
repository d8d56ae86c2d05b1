"""Segmented LRU: what was used more than once is protected."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import PageTrace, RequestHits, RunView, ScoredEviction, register, require_at_least
from .replays.forest import forest_hits
from .replays.leaves import USE, ValueForest
from .replays.lists import slru_hits


@register("eviction", "slru")
@dataclass
class SLRU(ScoredEviction):
    """Runs on probation leave first, protected ones after them; in each segment the least recently used leaves first.

    SGLang's ``SLRUStrategy`` (``mem_cache/evict_policy.py``): a run is protected once it was used ``protected_uses``
    times, the request that stored it included. The idea: Karedla, Love and Wherry, "Caching
    strategies to improve disk system performance", IEEE Computer 27(3), 1994.

    Deviations: as in SGLang the protected segment has no size of its own, so that nothing falls back on probation;
    counts start again when a run that had left is stored anew.
    """

    protected_uses: int = 2

    def __post_init__(self) -> None:
        require_at_least(self, 1, "protected_uses")

    def score(self, run: RunView) -> tuple[float, ...]:
        return (run.uses >= self.protected_uses, run.last_use)

    def replay_blocks(self, trace: PageTrace, capacity: int) -> bytearray:
        return slru_hits(trace, capacity, self.protected_uses)

    def replay_prefixes(self, trace: PageTrace, capacity: int) -> RequestHits:
        often = self.protected_uses
        return forest_hits(ValueForest(trace, lambda uses, last: (uses >= often) * USE + last), trace, capacity)
