"""The fast replay of S3-FIFO, page by page."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ....framework.policy import PageTrace
from .forest import Forest

OUT, SMALL, MAIN = range(3)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Pages that the small queue should have, keys that the ghost queue remembers, and the policy's two thresholds."""

    small: int
    ghost: int
    promote_above: int
    max_count: int


def s3fifo_hits(trace: PageTrace, capacity: int, sizes: Sizes) -> bytearray:
    """Queues of pages. The ghost queue is the row of all that left the small one, from its oldest valid entry on."""
    pages, where, uses = trace.pages, bytearray(trace.distinct), [0] * trace.distinct
    hits, small, main = bytearray(len(pages)), deque[int](), deque[int]()
    gone, gone_at, oldest, remembered = list[int](), [-1] * trace.distinct, 0, 0
    promote_above, max_count, evicted = sizes.promote_above, sizes.max_count, False
    for now, page in enumerate(pages):
        if where[page]:
            hits[now] = 1
            if uses[page] < max_count:
                uses[page] += 1
            continue
        to_main = gone_at[page] >= 0
        if to_main:
            gone_at[page] = -1
            remembered -= 1
        elif not evicted and len(small) + len(main) < capacity:
            to_main = 0 < sizes.small <= len(small)
        if len(small) + len(main) == capacity:
            evicted, victim = True, -1
            if len(small) >= sizes.small:
                while small:
                    first = small.popleft()
                    if uses[first] <= promote_above:
                        victim = first
                        break
                    uses[first], where[first] = 0, MAIN
                    main.append(first)
            if victim >= 0:
                gone_at[victim] = len(gone)
                gone.append(victim)
                remembered += 1
                while remembered > sizes.ghost:
                    if gone_at[gone[oldest]] == oldest:
                        gone_at[gone[oldest]] = -1
                        remembered -= 1
                    oldest += 1
            else:
                victim = main.popleft()
                while uses[victim]:
                    uses[victim] -= 1
                    main.append(victim)
                    victim = main.popleft()
            where[victim] = OUT
        uses[page] = 0
        where[page] = MAIN if to_main else SMALL
        (main if to_main else small).append(page)
    return hits


class S3FifoForest(Forest):
    """The queues over contexts. What left is numbered in ``gone``; ``remembered``: a page's valid number, or -1."""

    def __init__(self, trace: PageTrace, sizes: Sizes) -> None:
        super().__init__(trace, 3)
        self.limits, self.uses, self.evicted = sizes, [0] * len(self.place), False
        self.gone, self.remembered, self.oldest, self.ghosts = list[int](), [-1] * len(self.place), 0, 0
        self.returning: set[int] = set()

    def use(self, pages: list[int]) -> None:
        uses, most = self.uses, self.limits.max_count
        for page in pages:
            if uses[page] < most:
                uses[page] += 1

    def want(self, pages: list[int]) -> None:
        for page in pages:
            if self.remembered[page] >= 0:
                self.remembered[page] = -1
                self.ghosts -= 1
                self.returning.add(page)

    def evict(self) -> None:
        self.evicted = True
        page = self._from_small() if self.sizes[SMALL] >= self.limits.small else -1
        if page < 0:
            page = self._from_main()
        if page < 0:  # all of main is held
            page = self._from_small()
        if page < 0:  # which gave all that it could to main
            page = self._from_main()
        if self.member[page] == SMALL:
            self._remember(page)
        self.drop(page)

    def _from_small(self) -> int:
        while (page := self.first(SMALL)) >= 0 and self.uses[page] > self.limits.promote_above:
            self.uses[page] = 0
            self._move_to_main(page)
        return page

    def _from_main(self) -> int:
        while (page := self.first(MAIN)) >= 0 and self.uses[page] > 0:
            self.uses[page] -= 1
            self._move_to_main(page)
        return page

    def _move_to_main(self, page: int) -> None:
        self.sizes[self.member[page]] -= 1
        self.put(page, MAIN)
        self.offer(page)

    def _remember(self, page: int) -> None:
        self.remembered[page] = len(self.gone)
        self.gone.append(page)
        self.ghosts += 1
        while self.ghosts > self.limits.ghost:
            if self.remembered[self.gone[self.oldest]] == self.oldest:
                self.remembered[self.gone[self.oldest]] = -1
                self.ghosts -= 1
            self.oldest += 1

    def enter(self, pages: list[int]) -> None:
        for page in pages:
            fills = not self.evicted and 0 < self.limits.small <= self.sizes[SMALL]
            self.put(page, MAIN if fills or page in self.returning else SMALL)
            self.uses[page] = 0
        self.returning.clear()
