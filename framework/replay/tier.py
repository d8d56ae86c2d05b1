"""A tier without data or time, page by page: what a policy's hooks see where its decisions alone are wanted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..policy import Eviction, RequestView, RunView, Tier


class PageRun:
    """A run of one page; a ``RunView``. ``kids`` counts the resident pages that follow it, ``due`` its next use."""

    __slots__ = (
        "conversation",
        "due",
        "inserted",
        "kids",
        "last_use",
        "page",
        "parent",
        "pinned",
        "resident",
        "shared",
        "start",
        "uses",
    )
    pages = 1

    def __init__(self, page: int, parent: PageRun | None, start: int, conversation: int, tick: int) -> None:
        self.page, self.parent, self.start, self.conversation = page, parent, start, conversation
        self.inserted = self.last_use = tick
        self.uses, self.kids, self.due = 1, 0, 0.0
        self.resident = self.pinned = True
        self.shared = False

    @property
    def keys(self) -> NDArray[np.int64]:
        """The number of its page."""
        return np.array([self.page], np.int64)

    def held_by(self, tier: Tier) -> bool:
        """There is one tier."""
        return self.resident and tier is Tier.DEVICE


class Nobody:
    """A ``QueueView`` in which nobody waits: a replay knows of a request when it is served."""

    def position(self, conversation: int) -> int | None:
        """None."""
        return None

    def conversations(self) -> Iterator[int]:
        """Nobody's."""
        return iter(())

    def head(self, limit: int) -> Iterator[RequestView]:
        """Nobody."""
        return iter(())


class TokenCosts:
    """A token costs one unit wherever it stands: a replay has no model and no hardware."""

    def recompute_s(self, start: int, stop: int) -> float:
        """Tokens."""
        return float(stop - start)

    def load_s(self, tokens: int, tier: Tier) -> float:
        """Tokens."""
        return float(tokens)


class DueTimes:
    """The ``Future`` of a replay: exact, page by page."""

    def next_use(self, run: RunView) -> float:
        """On the clock of :attr:`ReplayTier.now_s`."""
        assert isinstance(run, PageRun)
        return run.due


class ReplayTier:
    """``capacity`` pages, all alike, whose order is ``policy``'s; its ``TierView``.

    ``leaves_only``: a page that a resident one follows may not leave. ``now_s`` is the request's arrival, or, for an
    oracle, the number of the access: many requests of a trace arrive in the same second.
    """

    tier = Tier.DEVICE
    spare_pages = capacity_below = 0

    def __init__(self, policy: Eviction, capacity: int, page_size: int, leaves_only: bool) -> None:
        self.capacity = self.free_pages = capacity
        self.page_size, self.leaves_only = page_size, leaves_only
        self.queue, self.costs = Nobody(), TokenCosts()
        self.tick, self.now_s, self.evicted_pages = 0, 0.0, 0
        self.runs: dict[int, PageRun] = {}
        self.policy = policy
        policy.bind(self, DueTimes() if policy.oracle else None)

    def evictable(self, run: RunView) -> bool:
        """See ``TierView.evictable``."""
        assert isinstance(run, PageRun)
        return run.resident and not run.pinned and not (self.leaves_only and run.kids)

    def use(self, run: PageRun, conversation: int) -> None:
        """A request found ``run``; it is pinned."""
        run.uses += 1
        run.shared |= run.conversation != conversation
        run.conversation = conversation
        self.policy.accessed(run)

    def pin(self, run: PageRun) -> None:
        """``run`` may not leave."""
        run.pinned, run.last_use = True, self.tick

    def release(self, run: PageRun) -> None:
        """``run`` may leave from now on."""
        run.pinned, run.last_use = False, self.tick
        self.policy.released(run)

    def insert(self, page: int, parent: PageRun | None, conversation: int, due: float) -> PageRun:
        """``page`` becomes resident, pinned; there is room."""
        start = 0 if parent is None else parent.start + 1
        run = self.runs[page] = PageRun(page, parent, start, conversation, self.tick)
        run.due = due
        if parent is not None:
            parent.kids += 1
        self.free_pages -= 1
        self.policy.inserted(run, 1)
        return run

    def make_room(self, pages: int) -> None:
        """Have ``pages`` free pages.

        Raises
        ------
        RuntimeError
            If the policy names a page that may not leave, or too few.
        """
        if pages > self.free_pages:
            for victim in self.policy.victims(pages - self.free_pages):
                self._evict(victim.run)
                if pages <= self.free_pages and not victim.more:
                    return
        if pages > self.free_pages:
            raise RuntimeError(f"eviction policy {self.policy.name!r} named too few victims")

    def _evict(self, run: RunView) -> None:
        if not self.evictable(run):
            raise RuntimeError(f"eviction policy {self.policy.name!r} named pages that may not leave")
        assert isinstance(run, PageRun)
        run.resident = False
        del self.runs[run.page]
        if run.parent is not None:
            run.parent.kids -= 1
        self.free_pages += 1
        self.evicted_pages += 1
        self.policy.removed(run, True)
