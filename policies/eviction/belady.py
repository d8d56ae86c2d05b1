"""What is needed latest, and costs least to bring back, leaves first: it sees the future."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...framework.policy import PageTrace, RequestHits, RunView, ScoredEviction, Tier, register
from .replays.counts import belady_hits
from .replays.forest import forest_hits
from .replays.leaves import ValueForest, due_marks


@register("eviction", "belady")
@dataclass
class Belady(ScoredEviction):
    """What is needed latest, and costs least to bring back, leaves first: value = cost per page / time to its next use.

    An oracle: it knows when each conversation comes back. The cost is what losing the run takes: nothing if a nearer
    tier holds it, loading it if a lower one does, else recomputing it. Where all costs are equal it is MIN: Belady, "A
    study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966. ``weighs_costs``
    false ignores costs.

    A heuristic, not a bound: with sizes, costs and tiers the optimum is NP-hard, and MIN is optimal only for equal
    pages that are asked for one by one. The true bound is a cache that never evicts. Deviations from MIN: a run that
    several conversations share counts as needed at once, pages are always stored (MIN may bypass the cache), and a
    value is taken anew only if it has grown.
    """

    weighs_costs: bool = True
    oracle: ClassVar[bool] = True

    def score(self, run: RunView) -> tuple[float, ...]:
        assert self.future is not None
        next_s = self.future.next_use(run)
        wait_s = max(next_s - self.view.now_s, 1e-9)  # what is overdue is needed now, the longest waiting first
        return (self.cost_s(run) / run.pages / wait_s, -next_s)

    def cost_s(self, run: RunView) -> float:
        """What losing ``run`` costs in seconds."""
        if not self.weighs_costs:
            return float(run.pages)
        page, costs = self.view.page_size, self.view.costs
        for tier in Tier:
            if tier != self.view.tier and run.held_by(tier):
                return costs.load_s(run.pages * page, tier)
        return costs.recompute_s(run.start * page, (run.start + run.pages) * page)

    def replay_blocks(self, trace: PageTrace, capacity: int) -> bytearray:
        return belady_hits(trace, capacity)

    def replay_prefixes(self, trace: PageTrace, capacity: int) -> RequestHits:
        forest = ValueForest(trace, lambda uses, last: last, due_marks(trace))
        return forest_hits(forest, trace, capacity)
