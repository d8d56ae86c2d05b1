"""The fast replay of S3-FIFO, page by page."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ....framework.policy import PageTrace
from .forest import ListForest
from .ghosts import Ghosts, Gone

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


class S3FifoForest(ListForest):
    """The queues over contexts. ``returning``: what was remembered of the chains that are wanted now."""

    def __init__(self, trace: PageTrace, sizes: Sizes) -> None:
        super().__init__(trace, 3)
        self.limits, self.evicted = sizes, False
        self.ghosts, self.returning = Ghosts(1), dict[int, list[Gone]]()

    def use(self, chains: list[int]) -> None:
        most = self.limits.max_count
        for chain in chains:
            for piece in self.pieces[chain]:
                if piece.uses < most:
                    piece.uses += 1

    def want(self, missing: list[int]) -> None:
        gone = self.ghosts.gone
        self.returning = {chain: self.ghosts.recall(chain) for chain in missing if chain in gone}
        self.ghosts.lengths[0] -= sum(left.stop - left.start for back in self.returning.values() for left in back)

    def evict(self, need: int) -> None:
        self.evicted = True
        while need:
            chain = self._from_small() if self.lengths[SMALL] >= self.limits.small else -1
            most = max(1, self.lengths[SMALL] - self.limits.small + 1)  # until the small queue is short enough
            if chain < 0:
                chain, most = self._from_main(), need
            if chain < 0:  # all of main is held
                chain, most = self._from_small(), 1
            if chain < 0:  # which gave all that it could to main
                chain = self._from_main()
            home, stop = self.pieces[chain][-1].home, self.there[chain]
            taken = self.cut(chain, min(need, most))
            need -= taken
            self.lengths[home] -= taken
            if home == SMALL:
                self.ghosts.remember(chain, stop - taken, stop, 0)
                self.ghosts.forget(0, max(0, self.ghosts.lengths[0] - self.limits.ghost))

    def _from_small(self) -> int:
        while (chain := self.first(SMALL)) >= 0 and self.pieces[chain][-1].uses > self.limits.promote_above:
            self._move_to_main(chain, 0)
        return chain

    def _from_main(self) -> int:
        while (chain := self.first(MAIN)) >= 0 and (uses := self.pieces[chain][-1].uses) > 0:
            self._move_to_main(chain, uses - 1)
        return chain

    def _move_to_main(self, chain: int, uses: int) -> None:
        """The last page of ``chain`` alone."""
        own, last = self.pieces[chain], self.there[chain] - 1
        self.lengths[own[-1].home] -= 1
        if own[-1].start == last:
            own.pop()
        self.put(chain, last, last + 1, MAIN)
        own[-1].uses = uses
        self.offer(chain)

    def enter(self, chain: int, start: int) -> None:
        stop, small = self.sizes[chain], self.limits.small
        for left in self.returning.get(chain, ()):
            self.put(chain, start, left.start, SMALL)
            self.put(chain, left.start, left.stop, MAIN)
            start = left.stop
        middle = stop if self.evicted or not small else min(stop, start + max(0, small - self.lengths[SMALL]))
        self.put(chain, start, middle, SMALL)
        self.put(chain, middle, stop, MAIN)
