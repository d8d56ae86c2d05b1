"""Fast replays of prefix caches whose pages leave in a fixed row: LRU in that of release, FIFO in that of storing."""

from __future__ import annotations

from heapq import heappop, heappush

from ....framework.policy import PageTrace, RequestHits


def lru_prefix_hits(trace: PageTrace, capacity: int) -> RequestHits:
    """vLLM's free queue. A page's place is where it was released last; all before ``oldest`` have left.

    A page is always released after the pages that follow it, so that no other rule is needed.
    """
    pages, place, row = trace.pages, [-1] * (trace.distinct + trace.requests), list[int]()
    hits, oldest, free, evicted = [0] * trace.requests, 0, capacity, 0
    for request, (limit, tail) in enumerate(zip(trace.limits, trace.tails, strict=True)):
        own = pages[trace.bounds[request] : trace.bounds[request + 1]]
        held = 0
        for page in own:
            if place[page] < oldest:
                break
            held += 1
        hits[request] = min(limit, held)
        if tail:
            own.append(trace.distinct + request)
        own.reverse()
        for at, page in enumerate(own, len(row)):  # first: what it holds itself may not leave
            place[page] = at
        row += own
        free -= len(own) - held
        if free < 0:
            evicted -= free
            while free:
                free += place[row[oldest]] == oldest
                oldest += 1
    return RequestHits(hits, evicted)


def fifo_prefix_hits(trace: PageTrace, capacity: int) -> RequestHits:
    """Pages leave in the row in which they were stored, the end of a request's first.

    One that others follow is passed over; when the last of those has left, it is ``due`` before all that come later.
    """
    pages, room, row = trace.pages, trace.distinct + trace.requests, list[int]()
    place, kids, parent, passed = [-1] * room, [0] * room, [-1] * room, bytearray(room)
    hits, due, at, free, evicted = [0] * trace.requests, list[int](), 0, capacity, 0
    for request, (limit, tail) in enumerate(zip(trace.limits, trace.tails, strict=True)):
        own = pages[trace.bounds[request] : trace.bounds[request + 1]]
        held = 0
        for page in own:
            if place[page] < 0:
                break
            held += 1
        hits[request] = min(limit, held)
        pinned = own[held - 1] if held else -1  # of those that are there, the only one that may be a leaf
        if held:
            kids[pinned] += 1  # also where nothing follows: it may not leave now
        missing = own[held:]
        if tail:
            missing.append(trace.distinct + request)
        free -= len(missing)
        if free < 0:
            evicted -= free
        while free < 0:
            if due:
                page = row[heappop(due)]
            else:
                page = row[at]
                at += 1
            if kids[page]:
                passed[page] = 1
                continue
            place[page] = -1
            free += 1
            above = parent[page]
            if above >= 0:
                kids[above] -= 1
                if passed[above] and not kids[above]:
                    passed[above] = 0
                    heappush(due, place[above])
        if missing:
            above, end = pinned, len(row) + len(missing)
            for page in missing:
                end -= 1
                place[page], parent[page], kids[page] = end, above, 1
                above = page
            kids[above] = 0
            missing.reverse()
            row += missing
        elif held:
            kids[pinned] -= 1
            if passed[pinned] and not kids[pinned]:
                passed[pinned] = 0
                heappush(due, place[pinned])
    return RequestHits(hits, evicted)
