"""The fast replay of ARC, page by page: Megiddo and Modha, FAST 2003, Figure 4."""

from __future__ import annotations

from collections import deque

from ....framework.policy import PageTrace
from .forest import Forest

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


class ArcForest(Forest):
    """ARC's lists over contexts. What left is numbered in ``gone``; ``remembered``: a page's valid number, or -1."""

    def __init__(self, trace: PageTrace, capacity: int) -> None:
        super().__init__(trace, 5)
        self.capacity, self.p, self.wanted_b2 = capacity, 0.0, False
        self.gone, self.remembered = list[int](), [-1] * len(self.place)
        self.ghosts = {B1: deque[int](), B2: deque[int]()}
        self.returning: set[int] = set()

    def use(self, pages: list[int]) -> None:
        for page in pages:
            self.sizes[self.member[page]] -= 1
            self.put(page, T2)

    def want(self, pages: list[int]) -> None:
        sizes, remembered, member = self.sizes, self.remembered, self.member
        self.wanted_b2 = bool(pages) and remembered[pages[0]] >= 0 and member[pages[0]] == B2
        self.returning.clear()
        for page in pages:
            if remembered[page] < 0:
                continue
            if member[page] == B1:
                self.p = min(self.capacity, self.p + max(sizes[B2] / sizes[B1], 1.0))
            else:
                self.p = max(0.0, self.p - max(sizes[B1] / sizes[B2], 1.0))
            sizes[member[page]] -= 1
            remembered[page] = -1
            self.returning.add(page)

    def evict(self) -> None:
        in_t1 = self.sizes[T1]
        shrink_t1 = in_t1 > self.p or (self.wanted_b2 and 0 < in_t1 == self.p)
        page = self.first(T1 if shrink_t1 else T2)
        if page < 0:
            page = self.first(T2 if shrink_t1 else T1)
        ghost = B1 if self.member[page] == T1 else B2
        self.drop(page)
        self.member[page], self.remembered[page] = ghost, len(self.gone)
        self.ghosts[ghost].append(len(self.gone))
        self.gone.append(page)
        self.sizes[ghost] += 1
        self._trim()

    def enter(self, pages: list[int]) -> None:
        for page in pages:
            self.put(page, T2 if page in self.returning else T1)
            self._trim()

    def _trim(self) -> None:
        sizes = self.sizes
        while sizes[B1] and sizes[T1] + sizes[B1] > self.capacity:
            self._forget(B1)
        while sizes[B2] and sizes[T1] + sizes[T2] + sizes[B1] + sizes[B2] > 2 * self.capacity:
            self._forget(B2)

    def _forget(self, ghost: int) -> None:
        """The page that left first is remembered no longer."""
        while True:
            number = self.ghosts[ghost].popleft()
            if self.remembered[self.gone[number]] == number:
                self.remembered[self.gone[number]] = -1
                self.sizes[ghost] -= 1
                return
