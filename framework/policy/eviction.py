"""The family ``eviction``: the full contract, an order of runs to build on, and the narrow scored contract."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from .base import Policy
from .replays import PageTrace, RequestHits
from .views import Future, RunView, TierView

Score = float | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Victim:
    """``pages`` of ``run`` leave the tier, from its ``end``; where ``leaves_only`` holds, a part only from the tail.

    ``more``: the next victim belongs to this one (a session that leaves whole): it is taken too, needed or not.
    """

    run: RunView
    pages: int
    end: Literal["head", "tail"] = "tail"
    more: bool = False


class Eviction(Policy, ABC):
    """Which pages leave a full tier, and which are copied down in advance. One instance serves one tier.

    The store reports every change; hooks must be cheap (amortised O(log runs)) and change nothing but the policy's own
    order. Only pages for which ``view.evictable`` holds may be named; the store checks. A run that is split keeps its
    identity as the *lower* (tail) part; ``upper`` is new. The store splits before it removes a part, so what is
    removed is always a whole run. Runs hash and compare by identity.

    A run that was copied down in advance is spare: ``removed`` is called as if it had left, and ``inserted`` again if
    it is used, or loses the copy below, before its slots are reclaimed.

    ``trims``: the policy knows :meth:`trimmed`, which spares it (and the store) a split for each part that leaves.
    """

    family: ClassVar[str] = "eviction"
    trims: ClassVar[bool] = False

    def bind(self, view: TierView, future: Future | None = None) -> None:
        """Called once before any other hook. ``future`` is given to oracles only."""
        self.view = view
        self.future = future

    def inserted(self, run: RunView, pages: int) -> None:
        """The last ``pages`` pages of ``run`` became resident (all of it if the run is new). The run may be pinned."""

    def wanted(self, keys: NDArray[np.int64]) -> None:
        """A request asks for pages with ``keys``, which are not resident; room for them is made next."""

    def accessed(self, run: RunView) -> None:
        """A request used ``run``, which was resident."""

    def released(self, run: RunView) -> None:
        """The last pin of ``run`` is gone, it came here unpinned, or it became a leaf: it may be named from now on."""

    def split(self, upper: RunView, lower: RunView) -> None:
        """``lower`` gave its leading pages to the new run ``upper``."""

    def removed(self, run: RunView, evicted: bool) -> None:
        """``run`` left the tier; ``evicted`` False: it was taken away, not chosen."""

    def trimmed(self, run: RunView, pages: int) -> None:
        """So many pages of ``run`` were evicted, the rest stays what it is. Called only where ``trims`` holds, instead
        of ``split`` and ``removed``, and only for parts that :meth:`victims` named."""

    @abstractmethod
    def victims(self, need: int) -> Iterator[Victim]:
        """Yield victims, worst first, until the store stops asking. ``need`` pages are wanted; 0 is a no-op.

        The store removes each victim before it asks for the next one.
        """

    # Fast forms, which a policy may offer for task=replay. Each must take the decisions that the hooks above take where
    # every run is one page and all pages cost the same; a class that inherits one is replayed by its hooks.

    def replay_blocks(self, trace: PageTrace, capacity: int) -> bytearray | None:
        """Pages one after another, no prefix rule: 1 for each access that finds its page, else 0. None: not offered."""
        return None

    def replay_prefixes(self, trace: PageTrace, capacity: int) -> RequestHits | None:
        """Request by request: leading pages hit, own pages are pinned, then released tail first, and only pages that no
        resident page follows may leave. Each request fits ``capacity``. None: not offered."""
        return None


class RunQueue:
    """Runs ordered by a key, smallest first; ties: the deeper run first, then the one pushed earlier.

    Runs that may not leave when they are met are set aside until :meth:`wake`. O(log runs) amortised per call.
    """

    def __init__(self, view: TierView) -> None:
        self.pages = 0
        self._view = view
        self._heap: list[tuple[Score, int, int, RunView]] = []
        self._pushed = 0
        self._entry: dict[RunView, tuple[int, Score]] = {}  # run -> its one valid heap entry, and its key
        self._aside: dict[RunView, tuple[int, Score]] = {}

    def __contains__(self, run: RunView) -> bool:
        return run in self._entry or run in self._aside

    def push(self, run: RunView, key: Score) -> None:
        """Put ``run`` at ``key``, moving it if it is here."""
        if run not in self:
            self.pages += run.pages
        self._aside.pop(run, None)
        self._pushed += 1
        self._entry[run] = (self._pushed, key)
        heapq.heappush(self._heap, (key, -run.start, self._pushed, run))
        if len(self._heap) > 2 * len(self._entry) + 1024:
            self._heap = [entry for entry in self._heap if self._valid(entry[3], entry[2])]
            heapq.heapify(self._heap)

    def grow(self, pages: int) -> None:
        """A run in here got ``pages`` more pages."""
        self.pages += pages

    def shrink(self, run: RunView, pages: int) -> None:
        """``run`` has lost so many pages; not being here is not an error."""
        if run in self:
            self.pages -= pages

    def split(self, upper: RunView, lower: RunView) -> None:
        """``upper`` takes the place of the pages that ``lower`` gave it, right behind ``lower``."""
        _, key = self._entry[lower] if lower in self._entry else self._aside[lower]
        self.pages -= upper.pages
        self.push(upper, key)

    def remove(self, run: RunView) -> None:
        """Take ``run`` out; not being here is not an error."""
        if run in self:
            self.pages -= run.pages
            self._entry.pop(run, None)
            self._aside.pop(run, None)

    def wake(self, run: RunView | None) -> None:
        """``run`` may have become evictable."""
        if run is not None and run in self._aside:
            pushed, key = self._entry[run] = self._aside.pop(run)
            heapq.heappush(self._heap, (key, -run.start, pushed, run))

    def first(self) -> RunView | None:
        """The first run that may leave, or None; it stays in the queue."""
        heap, entries = self._heap, self._entry
        while heap:
            _, _, pushed, run = heap[0]
            entry = entries.get(run)
            if entry is not None and entry[0] == pushed:
                if self._view.evictable(run):
                    return run
                self._aside[run] = entries.pop(run)
            heapq.heappop(heap)
        return None

    def key(self, run: RunView) -> Score:
        """The key of a run in here."""
        return self._entry[run][1]

    def _valid(self, run: RunView, pushed: int) -> bool:
        entry = self._entry.get(run)
        return entry is not None and entry[0] == pushed


class ScoredEviction(Eviction):
    """The narrow contract: give each run a score; the smallest leaves first, tail pages first.

    Ties: the deeper run first, then the one released earlier. The score is taken when a run is released and again
    when it is about to leave; if it has grown since, the run goes back into the order (so scores that only grow are
    exact).
    """

    @abstractmethod
    def score(self, run: RunView) -> Score:
        """The value of keeping ``run``; smaller leaves earlier. One type (number or tuple) for all runs."""

    def bind(self, view: TierView, future: Future | None = None) -> None:
        super().bind(view, future)
        self.queue = RunQueue(view)

    def released(self, run: RunView) -> None:
        self.queue.push(run, self.score(run))

    def split(self, upper: RunView, lower: RunView) -> None:
        if lower in self.queue:
            self.queue.split(upper, lower)

    def removed(self, run: RunView, evicted: bool) -> None:
        self.queue.remove(run)
        self.queue.wake(run.parent)

    def trimmed(self, run: RunView, pages: int) -> None:
        self.queue.shrink(run, pages)

    def victims(self, need: int) -> Iterator[Victim]:
        while need > 0 and (run := self.queue.first()) is not None:
            score = self.score(run)
            if score > self.queue.key(run):  # type: ignore[operator]
                self.queue.push(run, score)
                continue
            pages = min(run.pages, need)
            need -= pages
            yield Victim(run, pages)
