"""Fast replays of prefix caches with several lists: pages, what follows them, and the leaves of each list in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from heapq import heappop, heappush

from ....framework.policy import PageTrace, RequestHits


class Forest(ABC):
    """Resident pages in lists. A page's ``place`` is its number in ``row``, the order in which pages were put; -1: out.

    ``member``: its list, ``sizes``: pages of each list. Only leaves are in ``heaps``; entries out of date are skipped.
    """

    def __init__(self, trace: PageTrace, lists: int) -> None:
        room = trace.distinct + trace.requests  # a number for each request's last, partial page too
        self.place, self.kids, self.parent = [-1] * room, [0] * room, [-1] * room
        self.member, self.sizes, self.row = bytearray(room), [0] * lists, list[int]()
        self.heaps: list[list[int]] = [[] for _ in range(lists)]
        self.pinned = -1

    @abstractmethod
    def use(self, pages: list[int]) -> None:
        """A request found ``pages``."""

    @abstractmethod
    def want(self, pages: list[int]) -> None:
        """It lacks ``pages``; room for them is made next."""

    @abstractmethod
    def evict(self) -> None:
        """One page leaves."""

    @abstractmethod
    def enter(self, pages: list[int]) -> None:
        """``pages``, which it lacked, are put into lists."""

    def settle(self, pages: list[int]) -> None:  # noqa: B027  most policies take nothing
        """A request is done with ``pages``, all that it held."""

    def first(self, where: int) -> int:
        """The leaf of a list that was put there first, -1: none."""
        heap, row, place, kids = self.heaps[where], self.row, self.place, self.kids
        while heap:
            page = row[heap[0]]
            if place[page] == heap[0] and not kids[page] and page != self.pinned:
                return page
            heappop(heap)
        return -1

    def put(self, page: int, where: int) -> None:
        """``page`` becomes the last of a list."""
        self.place[page], self.member[page] = len(self.row), where
        self.row.append(page)
        self.sizes[where] += 1

    def offer(self, page: int) -> None:
        """``page`` is a leaf and may leave."""
        heappush(self.heaps[self.member[page]], self.place[page])

    def drop(self, page: int) -> None:
        """``page`` left; the one before it may leave now."""
        self.place[page] = -1
        self.sizes[self.member[page]] -= 1
        above = self.parent[page]
        if above >= 0:
            self.kids[above] -= 1
            if not self.kids[above] and above != self.pinned:
                self.offer(above)

    def link(self, pages: list[int], above: int) -> int:
        """``pages`` follow each other, the first one ``above`` (-1: none); the last page of all."""
        kids, parent = self.kids, self.parent
        for page in pages:
            if above >= 0:
                kids[above] += 1
            parent[page], kids[page] = above, 0
            above = page
        return above


def forest_hits(forest: Forest, trace: PageTrace, capacity: int) -> RequestHits:
    """Replay ``trace``: see ``Eviction.replay_prefixes``."""
    place, hits, free, evicted = forest.place, [0] * trace.requests, capacity, 0
    for request, (limit, tail) in enumerate(zip(trace.limits, trace.tails, strict=True)):
        own = trace.pages[trace.bounds[request] : trace.bounds[request + 1]]
        held = 0
        for page in own:
            if place[page] < 0:
                break
            held += 1
        hits[request] = min(held, limit)
        forest.pinned = own[held - 1] if held else -1  # of those that are there, the only one that may be a leaf
        forest.use(own[: hits[request]])
        missing = own[held:]
        if tail:
            missing.append(trace.distinct + request)
        forest.want(missing)
        free -= len(missing)
        while free < 0:
            forest.evict()
            free += 1
            evicted += 1
        forest.enter(missing)
        deepest, forest.pinned = forest.link(missing, forest.pinned), -1
        forest.settle(own[:held] + missing)
        if deepest >= 0 and not forest.kids[deepest]:
            forest.offer(deepest)
    return RequestHits(hits, evicted)
