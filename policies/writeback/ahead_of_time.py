"""Pensieve's ahead-of-time swap-out: copies go down while a share of the device is still free."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...framework.policy import RunView, Tier, TierView, Writeback, register, require_at_least, require_share


@register("writeback", "ahead_of_time")
@dataclass
class AheadOfTime(Writeback):
    """Yu et al., "Stateful LLM serving with Pensieve", EuroSys 2025, section 4.3.2.

    When fewer than ``threshold`` of the device's pages are free, the chunks with the lowest retention value are copied
    to the host until there are as many again. A copied chunk stays valid on the device and its slots are reclaimed
    only when they are needed; such pages count as free here (the notes on the paper do not say; otherwise copying
    would never end). ``yields``: copies down wait while loads run, for both directions at once cost each 18-20 %
    (section 5).

    Copies are made in chunks of ``chunk_tokens``: a shortage of less than a chunk waits. Which pages they are the
    eviction policy says. What must leave before it was copied is copied then; what leaves the host when that is full is
    dropped, unless there is a disk, which the paper does not have.
    """

    threshold: float = 0.25
    chunk_tokens: int = 32
    yields: bool = True

    def __post_init__(self) -> None:
        require_share(self, "threshold")
        require_at_least(self, 1, "chunk_tokens")

    def on_evict(self, run: RunView, tier: Tier) -> bool:
        return True

    def ahead(self, view: TierView) -> int:
        if view.tier is not Tier.DEVICE or not view.capacity_below:
            return 0
        short = math.ceil(self.threshold * view.capacity) - view.free_pages - view.spare_pages
        chunk = -(-self.chunk_tokens // view.page_size)
        return short if short >= min(chunk, self.threshold * view.capacity) else 0
