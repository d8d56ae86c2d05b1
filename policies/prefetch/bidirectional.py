"""Cake: compute from the front while loading from the back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from ...framework.policy import (
    Costs,
    Loading,
    Prefetch,
    QueueView,
    Range,
    RequestView,
    Residency,
    RestorePlan,
    Tier,
    TierView,
    complete,
    nearest,
    register,
    require_at_least,
)


@register("prefetch", "bidirectional")
@dataclass
class Bidirectional(Prefetch):
    """Jin et al., "Compute or load KV cache? Why not both?" (Cake), arXiv 2410.03065.

    A history that is stored below the device comes back from both ends at once: its first tokens are computed, its last
    ones loaded, and the two meet where both take equally long. The meeting point is the page boundary m that makes
    max(compute(m), load(m)) smallest: compute(m) is the time to recompute what the device does not hold before m, the
    holes behind it and the new prompt, load(m) the time to load what host and disk hold behind m. What is on the device
    is used. Disk parts of the first ``max_window`` waiting requests are fetched to the host ahead of their turn.

    Deviations: Cake finds the point as it goes, chunk by chunk; here the cost model says beforehand where it lies. The
    new prompt counts as computing, for it runs in the same iteration: if it takes longer than all loads, all is loaded.
    Cake computes and loads strictly to the meeting point; holes behind it are recomputed here.
    """

    loading: Loading = "layers"
    max_window: int = 64

    reuses: ClassVar[Literal["nothing", "pages", "tokens"]] = "tokens"
    holes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least(self, 0, "max_window")

    def restore(self, request: RequestView, residency: Residency, costs: Costs) -> RestorePlan:
        known, page = request.known_tokens, residency.page_size
        ranges = nearest(residency, known - 1)
        loads = [part for part in ranges if part.action == "load"]
        if not loads:
            return complete(ranges, known, self.loading)
        low, high = loads[0].start // page, -(-loads[-1].stop // page)
        while low < high:  # the first page boundary where computing takes as long as loading
            middle = (low + high) // 2
            compute_s, load_s = _times(_cut(ranges, middle * page), known, costs)
            low, high = (low, middle) if compute_s >= load_s else (middle + 1, high)
        choices = [_cut(ranges, max(low - back, 0) * page) for back in (0, 1)]
        best = min(choices, key=lambda choice: max(_times(choice, known, costs)))
        return complete(best, known, self.loading)

    def ahead(self, queue: QueueView, host: TierView) -> Iterator[RequestView]:
        return queue.head(self.max_window)


def _cut(ranges: list[Range], meeting: int) -> list[Range]:
    """``ranges`` with the loads before the token ``meeting`` turned into computing."""
    cut: list[Range] = []
    for part in ranges:
        middle = min(max(meeting, part.start), part.stop) if part.action == "load" else part.start
        if middle > part.start:
            cut.append(Range(part.start, middle, "recompute"))
        if part.stop > middle:
            cut.append(Range(middle, part.stop, part.action, part.tier))
    return cut


def _times(ranges: list[Range], known_tokens: int, costs: Costs) -> tuple[float, float]:
    """Seconds to compute and seconds to load what the plan of ``ranges`` takes."""
    parts = complete(ranges, known_tokens).ranges
    compute_s = sum(costs.recompute_s(part.start, part.stop) for part in parts if part.action == "recompute")
    load_s = 0.0
    for tier in (Tier.HOST, Tier.DISK, Tier.REMOTE):
        tokens = sum(part.stop - part.start for part in parts if part.action == "load" and part.tier is tier)
        load_s += costs.load_s(tokens, tier) if tokens else 0.0
    return compute_s, load_s
