"""ARC: what was used once and what was used more often share the tier in a proportion that adapts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...framework.policy import Eviction, Future, PageTrace, RequestHits, RunQueue, RunView, TierView, Victim, register
from .replays.arc import ArcForest, arc_hits
from .replays.forest import forest_hits


@register("eviction", "arc")
@dataclass
class ARC(Eviction):
    """Megiddo and Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003, Figure 4.

    T1 holds pages seen once recently, T2 pages seen more often, B1 and B2 remember what left them. A page wanted
    again while in B1 raises the target ``p`` of T1 by max(|B2|/|B1|, 1), one in B2 lowers it by max(|B1|/|B2|, 1).
    T1's least recent page leaves if T1 is larger than
    ``p``, or as large and the page wanted is in B2, else T2's. No knobs.

    Deviations: lists hold runs, not single pages (sizes and ``p`` are in pages; a run returns to T2 if its first page
    is remembered); pinned runs and runs with a resident child where those may not leave are passed over.
    """

    def bind(self, view: TierView, future: Future | None = None) -> None:
        super().bind(view, future)
        self._t1, self._t2 = RunQueue(view), RunQueue(view)
        self._b1: OrderedDict[int, None] = OrderedDict()
        self._b2: OrderedDict[int, None] = OrderedDict()
        self._p = 0.0
        self._returning: set[int] = set()
        self._used = 0
        self._wanted_b2 = False

    def _use(self, queue: RunQueue, run: RunView) -> None:
        self._used += 1
        queue.push(run, self._used)

    def wanted(self, keys: NDArray[np.int64]) -> None:
        self._wanted_b2 = len(keys) > 0 and int(keys[0]) in self._b2
        self._returning.clear()
        self._recall(keys)

    def _recall(self, keys: NDArray[np.int64]) -> None:
        for key in keys.tolist():
            if key in self._b1:
                self._p = min(self.view.capacity, self._p + max(len(self._b2) / len(self._b1), 1.0))
                del self._b1[key]
            elif key in self._b2:
                self._p = max(0.0, self._p - max(len(self._b1) / len(self._b2), 1.0))
                del self._b2[key]
            else:
                continue
            self._returning.add(key)

    def inserted(self, run: RunView, pages: int) -> None:
        new = run.keys[-pages:]
        self._recall(new)  # what was not asked for: given up ahead of time and used again, or come from another tier
        for queue in (self._t1, self._t2):
            if run in queue:
                queue.grow(pages)
                break
        else:
            self._use(self._t2 if int(run.keys[0]) in self._returning else self._t1, run)
        self._returning.difference_update(new.tolist())
        self._trim()

    def accessed(self, run: RunView) -> None:
        if run in self._t1 or run in self._t2:
            self._t1.remove(run)
            self._use(self._t2, run)

    def released(self, run: RunView) -> None:
        self._t1.wake(run)
        self._t2.wake(run)

    def split(self, upper: RunView, lower: RunView) -> None:
        for queue in (self._t1, self._t2):
            if lower in queue:
                queue.split(upper, lower)

    def removed(self, run: RunView, evicted: bool) -> None:
        for queue, ghost in ((self._t1, self._b1), (self._t2, self._b2)):
            if evicted and run in queue:
                ghost.update(dict.fromkeys(run.keys.tolist()))
            queue.remove(run)
            queue.wake(run.parent)
        self._trim()

    def _trim(self) -> None:
        """|T1| + |B1| <= c, and all four lists together <= 2c (cases A and B of the paper)."""
        capacity = self.view.capacity
        while self._b1 and self._t1.pages + len(self._b1) > capacity:
            self._b1.popitem(last=False)
        while self._b2 and self._t1.pages + self._t2.pages + len(self._b1) + len(self._b2) > 2 * capacity:
            self._b2.popitem(last=False)

    def victims(self, need: int) -> Iterator[Victim]:
        while need > 0:
            shrink_t1 = self._t1.pages > self._p or (self._wanted_b2 and 0 < self._t1.pages == self._p)
            lists = (self._t1, self._t2) if shrink_t1 else (self._t2, self._t1)
            run = lists[0].first() or lists[1].first()
            if run is None:
                return
            pages = min(run.pages, need)
            if lists[0] is self._t1 and self._t1.pages - pages < self._p:
                pages = max(1, min(pages, int(self._t1.pages - self._p)))
            need -= pages
            yield Victim(run, pages)

    def replay_blocks(self, trace: PageTrace, capacity: int) -> bytearray:
        return arc_hits(trace, capacity)

    def replay_prefixes(self, trace: PageTrace, capacity: int) -> RequestHits:
        return forest_hits(ArcForest(trace, capacity), trace, capacity)
