"""Fast replays of prefix caches: of each context only the last page may leave, so only those are kept in order."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush, heappushpop

from ....framework.policy import NEVER, PageTrace, RequestHits

Key = Callable[[int, int], int]  # uses, last use -> what leaves first is smallest
USE = 1 << 32  # more than any number of a request: for keys of two parts
_PAGE_BITS, _DEPTH_BITS = 30, 24
_PAGE, _DEEPEST = (1 << _PAGE_BITS) - 1, (1 << _DEPTH_BITS) - 1


def leaf_hits(trace: PageTrace, capacity: int, key: Key, marks: list[int] | None = None) -> RequestHits:
    """Replay ``trace``; ties of ``key``: the deeper page first.

    A page's key must not change but when a request uses the page. ``marks[i]`` is what access i leaves as the page's
    last use; None: the number of the request.
    """
    leaves, hits = Leaves(trace, key), [0] * trace.requests
    pages, resident, uses, last = trace.pages, leaves.resident, leaves.uses, leaves.last
    free, evicted = capacity, 0
    for request in range(trace.requests):
        first, stop = trace.bounds[request], trace.bounds[request + 1]
        own = pages[first:stop]
        held = 0
        for page in own:
            if not resident[page]:
                break
            held += 1
        hits[request] = min(held, trace.limits[request])
        for page in own[: hits[request]]:
            uses[page] += 1
        pinned = own[held - 1] if held else -1  # of those that are there, the only one that may be a leaf
        missing = own[held:]
        if trace.tails[request]:
            missing.append(trace.distinct + request)
        free -= len(missing)
        if free < 0:
            leaves.evict(-free, pinned)
            evicted, free = evicted - free, 0
        deepest = leaves.insert(missing, pinned, held, request)
        if marks is None:
            for page in own:
                last[page] = request
        else:
            for page, mark in zip(own, marks[first:stop], strict=True):
                last[page] = mark
        leaves.release(deepest)
    return RequestHits(hits, evicted)


class Leaves:
    """Which pages are resident, and those that none follows in order of ``key``. Entries out of date are skipped."""

    def __init__(self, trace: PageTrace, key: Key) -> None:
        room = trace.distinct + trace.requests  # a number for each request's last, partial page too
        self.resident, self.uses, self.last = bytearray(room), [0] * room, [0] * room
        self._kids, self._parent, self._depth = [0] * room, [-1] * room, [0] * room
        self._entry, self._heap, self._key = [-1] * room, list[int](), key

    def _place(self, page: int) -> int:
        """Where ``page`` stands in the order now: its key, its depth, its number."""
        key = self._key(self.uses[page], self.last[page])
        entry = (((key << _DEPTH_BITS) + _DEEPEST - self._depth[page]) << _PAGE_BITS) + page
        self._entry[page] = entry
        return entry

    def evict(self, need: int, pinned: int) -> None:
        """``need`` pages leave, not ``pinned``; a page without followers may leave next."""
        heap, entries, kids, parent, resident = self._heap, self._entry, self._kids, self._parent, self.resident
        freed = -1  # the entry of a page that became a leaf, not in the heap yet
        while need:
            entry = heappop(heap) if freed < 0 else heappushpop(heap, freed)
            page, freed = entry & _PAGE, -1
            if entries[page] != entry or page == pinned:
                continue
            resident[page], entries[page] = 0, -1
            need -= 1
            above = parent[page]
            if above >= 0:
                kids[above] -= 1
                if not kids[above] and above != pinned:
                    freed = self._place(above)
        if freed >= 0:
            heappush(heap, freed)

    def insert(self, missing: list[int], above: int, depth: int, request: int) -> int:
        """Store ``missing`` after the page ``above`` (-1: none), which is number ``depth`` - 1; the deepest page."""
        if not missing:
            return above
        resident, uses, last, kids = self.resident, self.uses, self.last, self._kids
        parent, depths = self._parent, self._depth
        if above >= 0:
            kids[above] += 1
            self._entry[above] = -1
        for page in missing:
            resident[page] = uses[page] = kids[page] = 1
            parent[page], depths[page], last[page] = above, depth, request
            above = page
            depth += 1
        kids[above] = 0
        return above

    def release(self, deepest: int) -> None:
        """A request whose last page is ``deepest`` (-1: none) is done: that page may leave if no other follows it."""
        if deepest >= 0 and not self._kids[deepest]:
            heappush(self._heap, self._place(deepest))


def due_marks(trace: PageTrace) -> list[int]:
    """For :func:`leaf_hits`: what is asked for again last leaves first; 0: never."""
    return [0 if following == NEVER else NEVER - following for following in trace.following]
