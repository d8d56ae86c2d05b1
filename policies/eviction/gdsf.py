"""Greedy-Dual-Size-Frequency: uses times the cost of losing it, by size, ageing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...framework.policy import (
    Eviction,
    Future,
    PageTrace,
    RequestHits,
    RunQueue,
    RunView,
    Tier,
    TierView,
    Victim,
    register,
)
from .replays.counts import gdsf_hits
from .replays.forest import forest_hits
from .replays.gdsf import GdsfForest


@register("eviction", "gdsf")
@dataclass
class GDSF(Eviction):
    """Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching policy", HP Labs 1998.

    H = L + frequency * cost / size, smallest first. Frequency is how many requests used the run, size its pages, cost
    the seconds that losing it takes: recomputing its tokens after all that precede them, or, where ``counts_copies``
    and a lower tier holds a copy, loading them. L is the H of the run that left last, so that what is not used ages. H
    is taken when a run is released.

    Deviations: H belongs to a run, not to a page, and is not taken anew when a part of the run has left or a copy has
    been made meanwhile; tail pages leave first. Frequency starts again when a run that had left is stored anew.
    """

    counts_copies: bool = True

    def bind(self, view: TierView, future: Future | None = None) -> None:
        super().bind(view, future)
        self._queue = RunQueue(view)
        self._inflation = 0.0

    def cost_s(self, run: RunView) -> float:
        """What losing ``run`` costs in seconds."""
        page, costs = self.view.page_size, self.view.costs
        if self.counts_copies:
            for tier in Tier:
                if tier > self.view.tier and run.held_by(tier):
                    return costs.load_s(run.pages * page, tier)
        return costs.recompute_s(run.start * page, (run.start + run.pages) * page)

    def released(self, run: RunView) -> None:
        self._queue.push(run, self._inflation + run.uses * self.cost_s(run) / run.pages)

    def split(self, upper: RunView, lower: RunView) -> None:
        if lower in self._queue:
            self._queue.split(upper, lower)

    def removed(self, run: RunView, evicted: bool) -> None:
        self._queue.remove(run)
        self._queue.wake(run.parent)

    def victims(self, need: int) -> Iterator[Victim]:
        while need > 0 and (run := self._queue.first()) is not None:
            value = self._queue.key(run)
            assert isinstance(value, float)
            self._inflation = max(self._inflation, value)
            pages = min(run.pages, need)
            need -= pages
            yield Victim(run, pages)

    def replay_blocks(self, trace: PageTrace, capacity: int) -> bytearray:
        return gdsf_hits(trace, capacity)

    def replay_prefixes(self, trace: PageTrace, capacity: int) -> RequestHits:
        return forest_hits(GdsfForest(trace), trace, capacity)
