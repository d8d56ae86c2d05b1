"""Fast replays of prefix caches whose pages leave in a fixed row: LRU in that of release, FIFO in that of storing."""

from __future__ import annotations

from heapq import heappop, heappush

from ....framework.policy import PageTrace, RequestHits


def lru_prefix_hits(trace: PageTrace, capacity: int) -> RequestHits:
    """vLLM's free queue: the request that is longest ago gives up its pages, the last one first.

    A chain that was asked for again since is passed over. A page is always released after the pages that follow it, so
    that no other rule is needed.
    """
    chains = trace.chains
    sizes, rows = chains.sizes, chains.rows
    there, last = [0] * len(sizes), [-1] * len(sizes)  # resident pages of a chain, and the last request for it
    hits, free, evicted = [0] * trace.requests, capacity, 0
    oldest, line = -1, list[int]()  # of the oldest request that has pages, and its chains
    for request, (row, limit, pages) in enumerate(zip(rows, trace.limits, chains.pages, strict=True)):
        held = 0
        for chain in row:  # first: what it holds itself may not leave
            held += there[chain]
            there[chain] = sizes[chain]
            last[chain] = request
        hits[request] = min(held, limit)
        free -= pages - held
        if free < 0:
            evicted -= free
            while free < 0:
                while not line:
                    oldest += 1
                    line = rows[oldest].copy()
                chain = line.pop()
                if last[chain] == oldest:
                    free += there[chain]
                    there[chain] = 0
            if free:  # more than was needed: the rest of the chain stays
                there[chain] = free
                line.append(chain)
                free = 0
    return RequestHits(hits, evicted)


def fifo_prefix_hits(trace: PageTrace, capacity: int) -> RequestHits:
    """Pages leave in the row in which they were stored, the end of a request's first: see :class:`_Stored`."""
    stored = _Stored(trace)
    sizes, there = stored.sizes, stored.there
    hits, free, evicted = [0] * trace.requests, capacity, 0
    for request, (row, limit, pages) in enumerate(zip(stored.rows, trace.limits, stored.pages, strict=True)):
        held = whole = 0
        for chain in row:
            held += there[chain]
            if there[chain] < sizes[chain]:
                break
            whole += 1
        hits[request] = min(held, limit)
        missing = row[whole:]
        pinned = missing[0] if missing and there[missing[0]] else row[whole - 1] if whole else -1
        free -= pages - held
        if free < 0:
            evicted -= free
            stored.evict(-free, pinned)
            free = 0
        if missing:
            stored.store(missing, request)
        else:
            stored.lines.append(missing)
            stored.starts.append(0)
            if pinned >= 0:
                stored.expose(pinned)
    return RequestHits(hits, evicted)


class _Stored:
    """What each request stored: the chains of its ``lines``, the first of them from page ``starts`` on.

    ``there``: resident pages of a chain; ``owners``: the requests that stored them; ``kids``: resident chains that
    follow. A request whose end others follow is ``passed`` over; when they have left it is ``due`` before all later.
    """

    def __init__(self, trace: PageTrace) -> None:
        chains = trace.chains
        self.sizes, self.above, self.rows, self.pages = chains.sizes, chains.above, chains.rows, chains.pages
        self.there, self.kids = [0] * len(self.sizes), [0] * len(self.sizes)
        self.owners: list[list[int]] = [[] for _ in self.sizes]
        self.lines, self.starts = list[list[int]](), list[int]()
        self.at, self.due, self.passed = 0, list[int](), bytearray(trace.requests)

    def store(self, missing: list[int], request: int) -> None:
        there, kids, owners, sizes, first = self.there, self.kids, self.owners, self.sizes, missing[0]
        self.lines.append(missing)
        self.starts.append(there[first])
        if not there[first] and self.above[first] >= 0:
            kids[self.above[first]] += 1
        for chain in missing:
            there[chain], kids[chain] = sizes[chain], 1
            owners[chain].append(request)
        kids[missing[-1]] = 0

    def evict(self, need: int, pinned: int) -> None:
        """``need`` pages leave, none of chain ``pinned``."""
        there, kids, owners = self.there, self.kids, self.owners
        while need:
            owner = self.due[0] if self.due else self.at
            line = self.lines[owner]
            while line:
                chain = line[-1]
                if kids[chain] or chain == pinned or owners[chain][-1] != owner:
                    self.passed[owner] = 1
                    break
                start = self.starts[owner] if len(line) == 1 else 0
                left = there[chain] - start
                if left > need:
                    there[chain] -= need
                    return
                need -= left
                there[chain] = start
                line.pop()
                owners[chain].pop()
                self._uncover(chain, start)
                if not need:
                    return
            if owner == self.at:
                self.at += 1
            elif self.due[0] == owner:  # else an older one became due just now, and it is met again
                heappop(self.due)

    def _uncover(self, chain: int, start: int) -> None:
        """What page ``start`` of ``chain`` followed may leave next, if no other page follows it."""
        if not start and (chain := self.above[chain]) >= 0:
            self.kids[chain] -= 1
        if chain >= 0:
            self.expose(chain)

    def expose(self, chain: int) -> None:
        """The end of ``chain`` may leave if no other chain follows it."""
        if not self.kids[chain] and self.passed[self.owners[chain][-1]]:
            self.passed[self.owners[chain][-1]] = 0
            heappush(self.due, self.owners[chain][-1])
