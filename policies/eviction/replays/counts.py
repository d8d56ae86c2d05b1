"""Fast replays, page by page, of policies that count: LFU, GDSF, and Belady's, which counts what is to come.

Values are small whole numbers, so that each has a list of its own: no heap. Access numbers that are out of date are
skipped when they are met.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from ....framework.policy import NEVER, PageTrace


def lfu_hits(trace: PageTrace, capacity: int) -> bytearray:
    """A list per count. After a miss the smallest count is 1; above it, it is found again step by step."""
    pages, last, uses = trace.pages, [-1] * trace.distinct, [0] * trace.distinct
    hits, free, least = bytearray(len(pages)), capacity, 1
    lists = [deque[int](), deque[int]()]
    for now, page in enumerate(pages):
        used = uses[page] + 1
        if used > 1:
            hits[now] = 1
            if used == len(lists):
                lists.append(deque())
        else:
            if free:
                free -= 1
            else:
                at = -1
                while at < 0 or last[pages[at]] != at:
                    while not lists[least]:
                        least += 1
                    at = lists[least].popleft()
                uses[pages[at]] = 0
            least = 1
        uses[page] = used
        last[page] = now
        lists[used].append(now)
    return hits


def gdsf_hits(trace: PageTrace, capacity: int) -> bytearray:
    """Where all pages cost and weigh the same, H = L + frequency is a whole number: a list per H, and L only grows."""
    pages, last, uses = trace.pages, [-1] * trace.distinct, [0] * trace.distinct
    hits, free, inflation = bytearray(len(pages)), capacity, 0
    lists = [deque[int]()]
    for now, page in enumerate(pages):
        used = uses[page]
        if used:
            hits[now] = 1
        elif free:
            free -= 1
        else:
            at = -1
            while at < 0 or last[pages[at]] != at:
                while not lists[inflation]:
                    inflation += 1
                at = lists[inflation].popleft()
            uses[pages[at]] = 0
        uses[page] = used = used + 1
        last[page] = now
        while inflation + used >= len(lists):
            lists.append(deque())
        lists[inflation + used].append(now)
    return hits


def belady_hits(trace: PageTrace, capacity: int) -> bytearray:
    """MIN that always stores: pages that never return leave first, then the one that returns last."""
    pages, resident = trace.pages, bytearray(trace.distinct)
    hits, free = bytearray(len(pages)), capacity
    done, returning = deque[int](), list[int]()
    for now, (page, following) in enumerate(zip(pages, trace.following, strict=True)):
        if resident[page]:
            hits[now] = 1
        else:
            if free:
                free -= 1
            elif done:
                resident[done.popleft()] = 0
            else:
                resident[pages[-heappop(returning)]] = 0
            resident[page] = 1
        if following == NEVER:
            done.append(page)
        else:
            heappush(returning, -following)
    return hits
