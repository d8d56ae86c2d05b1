"""One tier's slots: a free list, counters, and the eviction policy that orders what could leave."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..policy import Costs, Eviction, Future, QueueView, RequestView, RunView, Tier
from .run import Run, Slots


@dataclass(slots=True)
class Moment:
    """The store's time: ``tick`` is logical, ``now_s`` the run's clock."""

    tick: int = 0
    now_s: float = 0.0


class EmptyQueue:
    """A ``QueueView`` in which nobody waits."""

    def position(self, conversation: int) -> int | None:
        """None."""
        return None

    def conversations(self) -> Iterator[int]:
        """Nobody's."""
        return iter(())

    def head(self, limit: int) -> Iterator[RequestView]:
        """Nobody."""
        return iter(())


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all tiers of a store share, for their policies."""

    page_size: int
    leaves_only: bool
    costs: Costs
    queue: QueueView
    moment: Moment
    future: Future | None = None


class TierPool:
    """``capacity`` page slots of one tier; a ``TierView`` for its policies.

    ``free_pages`` counts the slots that hold nothing, ``evictable_pages`` the resident pages that no request pins,
    ``spare`` the runs among them that may be reclaimed at no cost, oldest first. ``capacity_below``: pages of all lower
    tiers together.
    """

    def __init__(
        self, tier: Tier, capacity: int, eviction: Eviction, around: Surroundings, capacity_below: int
    ) -> None:
        if capacity < 1:
            raise ValueError(f"the {tier.name.lower()} tier holds {capacity} pages; at least 1 is needed")
        self.tier = tier
        self.capacity = capacity
        self.capacity_below = capacity_below
        self.eviction = eviction
        self.page_size = around.page_size
        self.leaves_only = around.leaves_only
        self.costs = around.costs
        self.queue = around.queue
        self.moment = around.moment
        self.evictable_pages = 0
        self.spare_pages = 0
        self.evicted_pages = 0
        self.peak_pages = 0
        self.spare: OrderedDict[Run, None] = OrderedDict()
        self._free = np.arange(capacity, dtype=np.int32)  # a ring: taken from the front
        self.free_pages, self._front = capacity, 0
        self._taken: list[Slots] = []
        eviction.bind(self, around.future if eviction.oracle else None)

    @property
    def tick(self) -> int:
        """The current logical time."""
        return self.moment.tick

    @property
    def now_s(self) -> float:
        """The run's clock."""
        return self.moment.now_s

    @property
    def used_pages(self) -> int:
        """Slots in use."""
        return self.capacity - self.free_pages

    @property
    def available_pages(self) -> int:
        """Slots that are free or can be freed by eviction."""
        return self.free_pages + self.evictable_pages

    def evictable(self, run: RunView) -> bool:
        """See ``TierView.evictable``."""
        assert isinstance(run, Run)
        tier = self.tier
        return not run.pins and run.slots[tier] is not None and not (self.leaves_only and run.kids[tier])

    def take(self, pages: int, *, computed: bool = False) -> Slots:
        """``pages`` free slots; the caller has made room. ``computed``: an iteration will write to them."""
        assert pages <= self.free_pages, "no room was made"
        front = self._front
        stop = front + pages
        if stop < self.capacity:
            taken = self._free[front:stop].copy()
            self._front = stop
        else:
            stop -= self.capacity
            taken = np.concatenate([self._free[front:], self._free[:stop]])
            self._front = stop
        self.free_pages -= pages
        self.peak_pages = max(self.peak_pages, self.capacity - self.free_pages)
        if computed and self.capacity_below:
            self._taken.append(taken)
        return taken

    def will_change(self, slots: Slots) -> None:
        """An iteration will write to ``slots``, which are taken already."""
        self._taken.append(slots)

    def take_these(self, slots: Slots) -> None:
        """Take ``slots``, all free, off the free list. O(capacity)."""
        free = self.free_slots()
        rest = free[~np.isin(free, slots)]
        assert len(rest) + len(slots) == len(free), "a slot is not free"
        self._free[: len(rest)] = rest
        self._front, self.free_pages = 0, len(rest)
        self.peak_pages = max(self.peak_pages, self.used_pages)

    def give(self, slots: Slots, *, in_use: bool = False) -> None:
        """Put ``slots`` back on the free list: they are used next, or last if a copy still reads them (``in_use``)."""
        pages, capacity = len(slots), self.capacity
        if in_use:
            start = (self._front + self.free_pages) % capacity
        else:
            start = self._front = (self._front - pages) % capacity
        stop = start + pages
        if stop <= capacity:
            self._free[start:stop] = slots
        else:
            self._free[start:] = slots[: capacity - start]
            self._free[: stop - capacity] = slots[capacity - start :]
        self.free_pages += pages

    def to_be_computed(self) -> Slots:
        """The slots that were taken for an iteration to write to since the last call; none where no tier is below, for
        no copy reads them then."""
        taken, self._taken = self._taken, []
        return np.concatenate(taken) if taken else np.empty(0, dtype=np.int32)

    def free_slots(self) -> Slots:
        """The free list, for checks."""
        return self._free[np.arange(self._front, self._front + self.free_pages) % self.capacity]
