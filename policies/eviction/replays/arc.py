"""The fast replay of ARC, page by page: Megiddo and Modha, FAST 2003, Figure 4."""

from __future__ import annotations

from collections import deque
from math import ceil

from ....framework.policy import PageTrace
from .forest import ListForest
from .ghosts import Ghosts, Gone

OUT, T1, T2, B1, B2 = range(5)


def arc_hits(trace: PageTrace, capacity: int) -> bytearray:
    """Lists hold access numbers; one that is not its page's last is out of date. ``p`` is the target of T1.

    The lists' sizes are counted apart: ``in_t1`` and so on.
    """
    pages, last, where = trace.pages, [-1] * trace.distinct, bytearray(trace.distinct)
    hits, p = bytearray(len(pages)), 0.0
    t1, t2, b1, b2 = deque[int](), deque[int](), deque[int](), deque[int]()
    in_t1 = in_t2 = in_b1 = in_b2 = 0
    for now, page in enumerate(pages):
        at = where[page]
        last[page] = now
        if at == T2:
            hits[now] = 1
            t2.append(now)
            continue
        if at == T1:
            hits[now] = 1
            t2.append(now)
            where[page] = T2
            in_t1 -= 1
            in_t2 += 1
            continue
        if at == B1:
            p = min(capacity, p + max(in_b2 / in_b1, 1.0))
            in_b1 -= 1
        elif at == B2:
            p = max(0.0, p - max(in_b1 / in_b2, 1.0))
            in_b2 -= 1
        if in_t1 + in_t2 == capacity:
            if not in_t2 or (in_t1 and (in_t1 > p or (at == B2 and in_t1 == p))):
                left = _oldest(t1, pages, last)
                b1.append(left)
                where[pages[left]] = B1
                in_t1 -= 1
                in_b1 += 1
            else:
                left = _oldest(t2, pages, last)
                b2.append(left)
                where[pages[left]] = B2
                in_t2 -= 1
                in_b2 += 1
        if at:
            t2.append(now)
            where[page] = T2
            in_t2 += 1
            continue
        t1.append(now)
        where[page] = T1
        in_t1 += 1
        if in_t1 + in_b1 > capacity:
            where[pages[_oldest(b1, pages, last)]] = OUT
            in_b1 -= 1
        elif in_t1 + in_t2 + in_b1 + in_b2 > 2 * capacity:
            where[pages[_oldest(b2, pages, last)]] = OUT
            in_b2 -= 1
    return hits


def _oldest(held: deque[int], pages: list[int], last: list[int]) -> int:
    """Take the first access of ``held`` that is its page's last one."""
    at = held.popleft()
    while last[pages[at]] != at:
        at = held.popleft()
    return at


class ArcForest(ListForest):
    """ARC's lists over contexts. ``returning``: what was remembered of the chains that are wanted now."""

    def __init__(self, trace: PageTrace, capacity: int) -> None:
        super().__init__(trace, 3)
        self.capacity, self.p, self.wanted_b2 = capacity, 0.0, False
        self.ghosts, self.returning = Ghosts(5), dict[int, list[Gone]]()

    def use(self, chains: list[int]) -> None:
        lengths, there = self.lengths, self.there
        for chain in chains:
            own, stop = self.pieces[chain], there[chain]
            for piece in reversed(own):
                lengths[piece.home] -= stop - piece.start
                stop = piece.start
            own.clear()
            self.put(chain, 0, there[chain], T2)

    def want(self, missing: list[int]) -> None:
        lengths, gone, first = self.ghosts.lengths, self.ghosts.gone, missing[0]
        self.returning.clear()
        for chain in missing:
            if chain not in gone:
                continue
            self.returning[chain] = self.ghosts.recall(chain)
            for left in self.returning[chain]:
                for _ in range(left.start, left.stop):
                    if left.ghost == B1:
                        self.p = min(self.capacity, self.p + max(lengths[B2] / lengths[B1], 1.0))
                    else:
                        self.p = max(0.0, self.p - max(lengths[B1] / lengths[B2], 1.0))
                    lengths[left.ghost] -= 1
        back = self.returning.get(first, [])[:1]
        self.wanted_b2 = any(left.ghost == B2 and left.start == self.there[first] for left in back)

    def evict(self, need: int) -> None:
        lengths = self.lengths
        while need:
            in_t1, most = lengths[T1], need
            shrink_t1 = in_t1 > self.p or (self.wanted_b2 and 0 < in_t1 == self.p)
            chain = self.first(T1 if shrink_t1 else T2)
            if chain < 0:
                chain = self.first(T2 if shrink_t1 else T1)
            elif shrink_t1:  # so many until it is the other's turn
                most = min(need, max(1, ceil(in_t1 - self.p)))
            home = self.pieces[chain][-1].home
            stop = self.there[chain]
            taken = self.cut(chain, most)
            lengths[home] -= taken
            self.ghosts.remember(chain, stop - taken, stop, B1 if home == T1 else B2)
            need -= taken

    def enter(self, chain: int, start: int) -> None:
        for left in self.returning.get(chain, ()):
            self.put(chain, start, left.start, T1)
            self.put(chain, left.start, left.stop, T2)
            start = left.stop
        self.put(chain, start, self.sizes[chain], T1)

    def store(self, missing: list[int]) -> None:
        """All of ``missing`` become resident; what is too much is forgotten."""
        super().store(missing)
        lengths, ghosts = self.lengths, self.ghosts.lengths
        self._trim(B1, lengths[T1] + ghosts[B1] - self.capacity)
        self._trim(B2, lengths[T1] + lengths[T2] + ghosts[B1] + ghosts[B2] - 2 * self.capacity)

    def _trim(self, ghost: int, pages: int) -> None:
        if pages > 0:
            self.ghosts.forget(ghost, min(pages, self.ghosts.lengths[ghost]))
