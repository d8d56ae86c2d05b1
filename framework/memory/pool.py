"""One tier's slots: a free list, counters, and the eviction policy that orders what could leave."""

from __future__ import annotations

import numpy as np

from ..policy import Costs, Eviction, Future, RunView, Tier
from .run import Run, Slots


class TierPool:
    """``capacity`` page slots of one tier; a ``TierView`` for its eviction policy.

    ``evictable_pages`` counts the resident pages that no request pins.
    """

    def __init__(
        self,
        tier: Tier,
        capacity: int,
        eviction: Eviction,
        *,
        page_size: int,
        leaves_only: bool,
        costs: Costs,
        future: Future | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"the {tier.name.lower()} tier holds {capacity} pages; at least 1 is needed")
        self.tier = tier
        self.capacity = capacity
        self.eviction = eviction
        self.page_size = page_size
        self.leaves_only = leaves_only
        self.costs = costs
        self.tick = 0
        self.evictable_pages = 0
        self.evicted_pages = 0
        self.peak_pages = 0
        self._free = np.arange(capacity - 1, -1, -1, dtype=np.int32)
        self._top = capacity
        eviction.bind(self, future if eviction.oracle else None)

    @property
    def free_pages(self) -> int:
        """Slots that hold nothing."""
        return self._top

    @property
    def used_pages(self) -> int:
        """Slots in use."""
        return self.capacity - self._top

    def evictable(self, run: RunView) -> bool:
        """See ``TierView.evictable``."""
        assert isinstance(run, Run)
        return run.slots[self.tier] is not None and not run.pins and not (self.leaves_only and run.kids[self.tier])

    def take(self, pages: int) -> Slots:
        """``pages`` free slots; the caller has made room."""
        assert pages <= self._top, "no room was made"
        taken = self._free[self._top - pages : self._top][::-1].copy()
        self._top -= pages
        self.peak_pages = max(self.peak_pages, self.used_pages)
        return taken

    def give(self, slots: Slots) -> None:
        """Put ``slots`` back on the free list."""
        self._free[self._top : self._top + len(slots)] = slots[::-1]
        self._top += len(slots)

    def free_slots(self) -> Slots:
        """The free list, for checks."""
        return self._free[: self._top].copy()
