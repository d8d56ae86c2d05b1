"""S3-FIFO: a small queue that most pages only pass, a main one, and a ghost."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...framework.policy import Eviction, Future, PageTrace, RequestHits, RunQueue, RunView, TierView, Victim, register
from .replays.forest import forest_hits
from .replays.s3fifo import S3FifoForest, Sizes, s3fifo_hits


@register("eviction", "s3fifo")
@dataclass
class S3FIFO(Eviction):
    """Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023, Algorithm 1.

    New pages enter a small FIFO; those used more than ``promote_above`` times there move to the main FIFO, the others
    leave and are remembered in a ghost FIFO. A page that returns while remembered enters the main FIFO. The main FIFO
    gives each used page another round, at most ``max_count`` of them.

    Defaults are the paper's: small 10 %, ghost 90 % of the capacity, counters of two bits. As in the authors'
    libCacheSim (``S3FIFO.c``), what comes before anything had to leave enters the main FIFO once the small one is full.
    Deviations: queues hold runs, not single pages (sizes are in pages; a run is a returning one if its first page is
    remembered); pinned runs and runs with a resident child where those may not leave are passed over.
    """

    small_ratio: float = 0.1
    ghost_ratio: float = 0.9
    promote_above: int = 1
    max_count: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.small_ratio < 1:
            raise ValueError(f"small_ratio is {self.small_ratio}; it must be between 0 and 1")
        if self.ghost_ratio < 0:
            raise ValueError(f"ghost_ratio is {self.ghost_ratio}; it must not be negative")

    def bind(self, view: TierView, future: Future | None = None) -> None:
        super().bind(view, future)
        self._small, self._main = RunQueue(view), RunQueue(view)
        self._count: dict[RunView, int] = {}
        self._ghost: OrderedDict[int, None] = OrderedDict()
        self._entered = 0
        self._returning: set[int] = set()
        self._evicted = False

    def _enter(self, queue: RunQueue, run: RunView) -> None:
        self._entered += 1
        queue.push(run, self._entered)

    def wanted(self, keys: NDArray[np.int64]) -> None:
        self._returning.update(key for key in keys.tolist() if key in self._ghost)  # before making room remembers more
        self._forget(keys)

    def _forget(self, keys: NDArray[np.int64]) -> None:
        for key in keys.tolist():
            self._ghost.pop(key, None)

    def inserted(self, run: RunView, pages: int) -> None:
        for queue in (self._small, self._main):
            if run in queue:
                queue.grow(pages)
                return
        self._count[run] = 0
        fills = not self._evicted and 0 < int(self.small_ratio * self.view.capacity) <= self._small.pages
        first = int(run.keys[0])
        returns = first in self._returning or first in self._ghost
        self._enter(self._main if fills or returns else self._small, run)
        self._forget(run.keys)
        self._returning.difference_update(run.keys.tolist())

    def accessed(self, run: RunView) -> None:
        if run in self._count:
            self._count[run] = min(self._count[run] + 1, self.max_count)

    def released(self, run: RunView) -> None:
        self._small.wake(run)
        self._main.wake(run)

    def split(self, upper: RunView, lower: RunView) -> None:
        if lower in self._count:
            self._count[upper] = self._count[lower]
            (self._small if lower in self._small else self._main).split(upper, lower)

    def removed(self, run: RunView, evicted: bool) -> None:
        self._evicted |= evicted
        if evicted and run in self._small:
            self._remember(run.keys)
        for queue in (self._small, self._main):
            queue.remove(run)
            queue.wake(run.parent)
        self._count.pop(run, None)

    def _remember(self, keys: NDArray[np.int64]) -> None:
        self._ghost.update(dict.fromkeys(keys.tolist()))
        while len(self._ghost) > int(self.ghost_ratio * self.view.capacity):
            self._ghost.popitem(last=False)

    def victims(self, need: int) -> Iterator[Victim]:
        while need > 0:
            run = self._from_small() if self._small_is_full() else None
            run = run or self._from_main() or self._from_small() or self._from_main()  # small may move all to main
            if run is None:
                return
            pages = min(run.pages, need)
            need -= pages
            yield Victim(run, pages)

    def _small_is_full(self) -> bool:
        return self._small.pages >= int(self.small_ratio * self.view.capacity)

    def _from_small(self) -> RunView | None:
        while (run := self._small.first()) is not None and self._count[run] > self.promote_above:
            self._small.remove(run)
            self._count[run] = 0
            self._enter(self._main, run)
        return run

    def _from_main(self) -> RunView | None:
        while (run := self._main.first()) is not None and self._count[run] > 0:
            self._count[run] -= 1
            self._enter(self._main, run)
        return run

    def _sizes(self, capacity: int) -> Sizes:
        small, ghost = int(self.small_ratio * capacity), int(self.ghost_ratio * capacity)
        return Sizes(small, ghost, self.promote_above, self.max_count)

    def replay_blocks(self, trace: PageTrace, capacity: int) -> bytearray:
        return s3fifo_hits(trace, capacity, self._sizes(capacity))

    def replay_prefixes(self, trace: PageTrace, capacity: int) -> RequestHits:
        return forest_hits(S3FifoForest(trace, self._sizes(capacity)), trace, capacity)
