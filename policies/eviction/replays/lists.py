"""Fast replays, page by page, of policies that keep pages in order of use: LRU, FIFO, SLRU.

Lists hold access numbers. An access that is not its page's last one is out of date and skipped when it is met: a page
that moves costs no search.
"""

from __future__ import annotations

from collections import deque

from ....framework.policy import PageTrace


def lru_hits(trace: PageTrace, capacity: int) -> bytearray:
    """The accesses themselves are the list: what is resident was last asked for at ``oldest`` or later."""
    hits, following, oldest, free = bytearray(len(trace.pages)), trace.following, 0, capacity
    for now, before in enumerate(trace.previous):
        if before >= oldest:
            hits[now] = 1
        elif free:
            free -= 1
        else:
            while following[oldest] < now:
                oldest += 1
            oldest += 1
    return hits


def fifo_hits(trace: PageTrace, capacity: int) -> bytearray:
    """Pages are numbered as they are stored: the last ``capacity`` of them are resident."""
    hits, stored = bytearray(len(trace.pages)), [-capacity - 1] * trace.distinct
    count, oldest = 0, -capacity
    for now, page in enumerate(trace.pages):
        if stored[page] >= oldest:
            hits[now] = 1
        else:
            stored[page] = count
            count += 1
            oldest += 1
    return hits


def slru_hits(trace: PageTrace, capacity: int, protected_uses: int) -> bytearray:
    """Two lists; pages that were used often enough leave only when no other is left."""
    pages, last, uses = trace.pages, [-1] * trace.distinct, [0] * trace.distinct
    hits, free = bytearray(len(pages)), capacity
    probation, protected = deque[int](), deque[int]()
    for now, page in enumerate(pages):
        used = uses[page]
        if used:
            hits[now] = 1
        elif free:
            free -= 1
        else:
            at = -1
            while at < 0 or last[pages[at]] != at:
                at = (probation or protected).popleft()
            uses[pages[at]] = 0
        uses[page] = used = used + 1
        last[page] = now
        (protected if used >= protected_uses else probation).append(now)
    return hits
