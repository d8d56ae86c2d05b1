"""The fast replay of GDSF as a prefix cache."""

from __future__ import annotations

from ....framework.policy import PageTrace
from .forest import BITS, CHAIN, Forest, Piece


class GdsfForest(Forest):
    """Pages leave by their H, then the deeper first, then by their last request.

    Where all pages cost and weigh the same, H = L + frequency is a whole number. Chains whose end may leave lie in
    ``buckets`` by H and depth. ``layer`` is the bucket of the smallest H at its greatest depth; a chain that loses a
    page there is ``below`` it next.
    """

    def __init__(self, trace: PageTrace) -> None:
        super().__init__(trace)
        self.inflation, self.depth = 0, 0
        self.taken, self.last = [0] * len(self.sizes), [0] * len(self.sizes)  # L then, and the last request
        self.buckets: dict[int, dict[int, list[int]]] = {}
        self.layer, self.at, self.below = list[int](), 0, list[int]()

    def use(self, chains: list[int]) -> None:
        for chain in chains:
            for piece in self.pieces[chain]:
                piece.uses += 1

    def enter(self, chain: int, start: int) -> None:
        self.pieces[chain].append(Piece(start))

    def settle(self, row: list[int], request: int) -> None:
        taken, last, inflation = self.taken, self.last, self.inflation
        for chain in row:
            taken[chain], last[chain] = inflation, request

    def offer(self, chain: int) -> None:
        value = self.taken[chain] + self.pieces[chain][-1].uses
        depth = self.depths[chain] + self.there[chain] - 1
        bucket = self.buckets.setdefault(value, {})
        bucket.setdefault(depth, []).append((self.last[chain] << BITS) + chain)

    def evict(self, need: int) -> None:
        last, there, pieces, pinned = self.last, self.there, self.pieces, self.pinned
        while need:
            if self.at == len(self.layer):
                self._descend()
            entry = self.layer[self.at]
            self.at += 1
            chain = entry & CHAIN
            if last[chain] != entry >> BITS or chain == pinned:
                continue  # it was asked for since, or is now
            need -= 1
            left = there[chain] - 1
            if left > pieces[chain][-1].start:
                there[chain] = left
                self.below.append(entry)
            else:
                self.cut(chain, 1)

    def _descend(self) -> None:
        """The next layer: one page less deep, or at the greatest depth of the next bucket."""
        self.layer, self.at, self.below = self.below, 0, []
        self.depth -= 1
        if not self.layer and not self.buckets.get(self.inflation):
            self.buckets.pop(self.inflation, None)
            self.inflation = min(self.buckets)
        bucket = self.buckets.get(self.inflation, {})
        if not self.layer:
            self.depth = max(bucket)
        self.layer += bucket.pop(self.depth, [])
        self.layer.sort()
