"""Fast replays of prefix caches whose pages have a value each: LFU, SLRU, Belady's."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from ....framework.policy import NEVER, PageTrace
from .forest import BITS, CHAIN, Forest, Piece

Key = Callable[[int, int], int]  # uses, last use -> what leaves first is smallest
USE = 1 << BITS  # more than any number of a request: for keys of two parts


class ValueForest(Forest):
    """What has the smallest ``key`` leaves first. It must not change but when a request uses the page.

    ``marks[r]`` is what request r leaves as the last use of each chain of its row; None: r. Pages of two chains must
    not have one key, unless nobody asks for them again.
    """

    def __init__(self, trace: PageTrace, key: Key, marks: list[list[int]] | None = None) -> None:
        super().__init__(trace)
        self.key, self.marks, self.heap = key, marks, list[int]()
        self.last, self.entry = [0] * len(self.sizes), [-1] * len(self.sizes)

    def use(self, chains: list[int]) -> None:
        for chain in chains:
            for piece in self.pieces[chain]:
                piece.uses += 1

    def enter(self, chain: int, start: int) -> None:
        self.pieces[chain].append(Piece(start))

    def settle(self, row: list[int], request: int) -> None:
        last, entry = self.last, self.entry
        for chain in row:
            last[chain], entry[chain] = request, -1
        if self.marks is not None:
            for chain, mark in zip(row, self.marks[request], strict=True):
                last[chain] = mark

    def offer(self, chain: int) -> None:
        entry = (self.key(self.pieces[chain][-1].uses, self.last[chain]) << BITS) + chain
        self.entry[chain] = entry
        heappush(self.heap, entry)

    def evict(self, need: int) -> None:
        heap, entries = self.heap, self.entry
        while need:
            entry = heappop(heap)
            chain = entry & CHAIN
            if entries[chain] != entry or chain == self.pinned:
                continue
            entries[chain], pieces = -1, len(self.pieces[chain])
            need -= self.cut(chain, need)
            if len(self.pieces[chain]) == pieces:
                self.offer(chain)


def due_marks(trace: PageTrace) -> list[list[int]]:
    """For :class:`ValueForest`: what is asked for again last leaves first; 0: never."""
    rows = trace.chains.rows
    due, marks = [NEVER] * len(trace.chains.sizes), list[list[int]]()
    for request in range(len(rows) - 1, -1, -1):
        marks.append([NEVER - due[chain] for chain in rows[request]])
        for chain in rows[request]:
            due[chain] = request
    return marks[::-1]
