"""Fast replays of prefix caches: chains of pages, what follows them, and pieces of chains in the order of a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from heapq import heappop, heappush

from ....framework.policy import PageTrace, RequestHits

BITS = 32
CHAIN = (1 << BITS) - 1


class Piece:
    """Pages of a chain from ``start`` on, up to the next piece, for all of which the policy knows the same.

    ``uses``: how often they were used. ``home``: their list; ``place``: their number in the order of entering lists.
    """

    __slots__ = ("home", "place", "start", "uses")

    def __init__(self, start: int, uses: int = 1, home: int = 0, place: int = 0) -> None:
        self.start, self.uses, self.home, self.place = start, uses, home, place


class Forest(ABC):
    """Resident pages. ``there``: how many of a chain's first pages; ``kids``: chains that follow and have pages there.

    Only a chain without ``kids`` may lose pages, from its end, and not the one that a request holds (``pinned``).
    """

    def __init__(self, trace: PageTrace) -> None:
        chains = trace.chains
        self.sizes, self.above, self.depths = chains.sizes, chains.above, chains.depths
        self.there, self.kids, self.pinned = [0] * len(self.sizes), [0] * len(self.sizes), -1
        self.pieces: list[list[Piece]] = [[] for _ in self.sizes]

    @abstractmethod
    def use(self, chains: list[int]) -> None:
        """A request found all or, of the last one, some of ``chains``."""

    def want(self, missing: list[int]) -> None:  # noqa: B027  most policies remember nothing
        """It lacks ``missing``, at least the end of the first one and all of the others; room is made next."""

    @abstractmethod
    def evict(self, need: int) -> None:
        """``need`` pages leave."""

    @abstractmethod
    def enter(self, chain: int, start: int) -> None:
        """Pages of ``chain`` from ``start`` on are stored: pieces of them."""

    def settle(self, row: list[int], request: int) -> None:  # noqa: B027  most policies take nothing
        """``request`` is done with ``row``."""

    @abstractmethod
    def offer(self, chain: int) -> None:
        """The end of ``chain`` may leave."""

    def cut(self, chain: int, most: int) -> int:
        """At most ``most`` pages of the last piece of ``chain`` leave: how many. What they followed may leave then."""
        pieces, there = self.pieces[chain], self.there
        start, stop = pieces[-1].start, there[chain]
        if stop - start > most:
            there[chain] = stop - most
            return most
        there[chain] = start
        pieces.pop()
        if not start:
            chain = self.above[chain]
            if chain < 0:
                return stop
            self.kids[chain] -= 1
        if not self.kids[chain]:
            self.offer(chain)
        return stop - start

    def store(self, missing: list[int]) -> None:
        """All of ``missing`` become resident."""
        there, kids, sizes, first = self.there, self.kids, self.sizes, missing[0]
        if not there[first] and self.above[first] >= 0:
            kids[self.above[first]] += 1
        for chain in missing:
            self.enter(chain, there[chain])
            there[chain], kids[chain] = sizes[chain], 1
        kids[missing[-1]] = 0


class ListForest(Forest):
    """A forest in lists, of which the leaf that entered first leaves; ``lengths``: pages of each list."""

    def __init__(self, trace: PageTrace, lists: int) -> None:
        super().__init__(trace)
        self.lengths, self.places = [0] * lists, 0
        self.heaps: list[list[int]] = [[] for _ in range(lists)]

    def first(self, home: int) -> int:
        """The chain whose end entered ``home`` first, -1: none. Entries out of date are dropped."""
        heap, pieces, kids = self.heaps[home], self.pieces, self.kids
        while heap:
            chain = heap[0] & CHAIN
            own = pieces[chain]
            if own and own[-1].place == heap[0] >> BITS and not kids[chain] and chain != self.pinned:
                return chain
            heappop(heap)
        return -1

    def offer(self, chain: int) -> None:
        piece = self.pieces[chain][-1]
        heappush(self.heaps[piece.home], (piece.place << BITS) + chain)

    def put(self, chain: int, start: int, stop: int, home: int) -> None:
        """Pages ``start`` .. ``stop`` of ``chain`` are stored as the last of list ``home``."""
        if stop > start:
            self.lengths[home] += stop - start
            self.places += 1
            self.pieces[chain].append(Piece(start, 0, home, self.places))


def forest_hits(forest: Forest, trace: PageTrace, capacity: int) -> RequestHits:
    """Replay ``trace``: see ``Eviction.replay_prefixes``."""
    chains, there, sizes, kids = trace.chains, forest.there, forest.sizes, forest.kids
    hits, free, evicted = [0] * trace.requests, capacity, 0
    for request, (row, limit) in enumerate(zip(chains.rows, trace.limits, strict=True)):
        held = whole = 0
        for chain in row:
            held += there[chain]
            if there[chain] < sizes[chain]:
                break
            whole += 1
        hits[request] = min(held, limit)
        found, missing = whole, row[whole:]
        if missing and there[missing[0]]:
            found += 1
        forest.pinned = row[found - 1] if found else -1  # of those that are there, the only one that may be a leaf
        usable = chains.usable[request]
        forest.use(row[: min(found, usable)])
        if missing:
            forest.want(missing)
            free -= chains.pages[request] - held
            if free < 0:
                evicted -= free
                forest.evict(-free)
                free = 0
            forest.store(missing)
        forest.pinned = -1
        forest.settle(row, request)
        if row and not kids[row[-1]]:
            forest.offer(row[-1])
    return RequestHits(hits, evicted)
