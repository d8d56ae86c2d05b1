"""The fast replay of GDSF as a prefix cache."""

from __future__ import annotations

from heapq import heappop, heappush

from ....framework.policy import PageTrace
from .forest import Forest

_BITS, _DEEPEST = 30, (1 << 30) - 1


class GdsfForest(Forest):
    """One list; a leaf's entry in ``order`` is its H, then its depth (the deeper first), its last request, its number.

    Where all pages cost and weigh the same, H = L + frequency is a whole number.
    """

    def __init__(self, trace: PageTrace) -> None:
        super().__init__(trace, 1)
        room = len(self.place)
        self.uses, self.value, self.depth, self.last, self.entry = ([0] * room for _ in range(5))
        self.order, self.inflation, self.request = list[int](), 0, 0

    def use(self, pages: list[int]) -> None:
        for page in pages:
            self.uses[page] += 1

    def want(self, pages: list[int]) -> None:
        """Nothing is remembered."""

    def enter(self, pages: list[int]) -> None:
        place, uses = self.place, self.uses
        for page in pages:
            place[page] = uses[page] = 1

    def link(self, pages: list[int], above: int) -> int:
        depth = self.depth[above] + 1 if above >= 0 else 0
        for at, page in enumerate(pages, depth):
            self.depth[page] = at
        return super().link(pages, above)

    def settle(self, pages: list[int]) -> None:
        """A request is done with ``pages``: their values are taken."""
        value, uses, last, inflation, request = self.value, self.uses, self.last, self.inflation, self.request
        for page in pages:
            value[page] = inflation + uses[page]
            last[page] = request
        self.request += 1

    def offer(self, page: int) -> None:
        placed = (((self.value[page] << _BITS) + _DEEPEST - self.depth[page]) << _BITS) + self.last[page]
        self.entry[page] = placed = (placed << _BITS) + page
        heappush(self.order, placed)

    def evict(self) -> None:
        while True:
            entry = heappop(self.order)
            page = entry & _DEEPEST
            if self.entry[page] == entry and self.place[page] >= 0 and not self.kids[page] and page != self.pinned:
                break
        self.inflation = max(self.inflation, self.value[page])
        self.drop(page)
