"""Textbook caches over single blocks, written page by page from the papers; each returns the number of hits."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

Cache = Callable[[Sequence[int], int], int]


def lru(trace: Sequence[int], capacity: int) -> int:
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for block in trace:
        if block in cache:
            hits += 1
            cache.move_to_end(block)
            continue
        if len(cache) == capacity:
            cache.popitem(last=False)
        cache[block] = None
    return hits


def fifo(trace: Sequence[int], capacity: int) -> int:
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for block in trace:
        if block in cache:
            hits += 1
            continue
        if len(cache) == capacity:
            cache.popitem(last=False)
        cache[block] = None
    return hits


def lfu(trace: Sequence[int], capacity: int) -> int:
    """Counts start again at reinsertion; among equals the least recently used leaves."""
    count: Counter[int] = Counter()
    last: dict[int, int] = {}
    hits = 0
    for index, block in enumerate(trace):
        if block in last:
            hits += 1
        elif len(last) == capacity:
            victim = min(last, key=lambda other: (count[other], last[other]))
            del last[victim], count[victim]
        count[block] += 1
        last[block] = index
    return hits


def slru(trace: Sequence[int], capacity: int) -> int:
    """Used twice is protected; each segment is a list in order of use."""
    probation: OrderedDict[int, None] = OrderedDict()
    protected: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for block in trace:
        if block in probation or block in protected:
            hits += 1
            probation.pop(block, None)
            protected.pop(block, None)
            protected[block] = None
            continue
        if len(probation) + len(protected) == capacity:
            (probation or protected).popitem(last=False)
        probation[block] = None
    return hits


def gdsf(trace: Sequence[int], capacity: int, cost: float = 1e-3) -> int:
    """Cherkasova's formula with equal sizes and costs; among equals the one that came to its value first leaves."""
    value: dict[int, tuple[float, int]] = {}
    count: Counter[int] = Counter()
    inflation, hits = 0.0, 0
    for index, block in enumerate(trace):
        if block in value:
            hits += 1
        elif len(value) == capacity:
            victim = min(value, key=lambda other: value[other])
            inflation = value.pop(victim)[0]
            del count[victim]
        count[block] += 1
        value[block] = (inflation + count[block] * cost, index)
    return hits


def ttl(trace: Sequence[int], capacity: int, ttl_s: float = 300.0) -> int:
    """An access a second; what was stored more than ``ttl_s`` ago leaves first, oldest first, then the least recent."""
    stored: OrderedDict[int, int] = OrderedDict()
    used: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for now, block in enumerate(trace):
        if block in stored:
            hits += 1
            used.move_to_end(block)
            continue
        if len(stored) == capacity:
            oldest = next(iter(stored))
            victim = oldest if now - stored[oldest] > ttl_s else next(iter(used))
            del stored[victim], used[victim]
        stored[block] = now
        used[block] = None
    return hits


def belady(trace: Sequence[int], capacity: int) -> int:
    """MIN, always inserting."""
    following: dict[int, list[int]] = {}
    for index, block in enumerate(trace):
        following.setdefault(block, []).append(index)
    cache: set[int] = set()
    hits = 0
    for block in trace:
        following[block].pop(0)
        if block in cache:
            hits += 1
            continue
        if len(cache) == capacity:
            cache.remove(max(cache, key=lambda other: (following[other] or [len(trace)])[0]))
        cache.add(block)
    return hits


def s3fifo(trace: Sequence[int], capacity: int) -> int:
    """Yang et al., SOSP 2023, as the authors' libCacheSim has it: small = int(0.1 C), ghost = int(0.9 C), and until
    something had to leave, what the small queue does not hold goes to the main one."""
    small: OrderedDict[int, int] = OrderedDict()
    main: OrderedDict[int, int] = OrderedDict()
    ghost: OrderedDict[int, None] = OrderedDict()
    hits, evicted = 0, False

    def evict() -> None:
        from_small = len(small) >= int(0.1 * capacity)
        while from_small and small:
            block, used = small.popitem(last=False)
            if used <= 1:
                ghost[block] = None
                if len(ghost) > int(0.9 * capacity):
                    ghost.popitem(last=False)
                return
            main[block] = 0
        while True:
            block, used = main.popitem(last=False)
            if not used:
                return
            main[block] = used - 1

    for block in trace:
        for queue in (small, main):
            if block in queue:
                hits += 1
                queue[block] = min(queue[block] + 1, 3)
                break
        else:
            returns = block in ghost
            ghost.pop(block, None)
            if len(small) + len(main) == capacity:
                evict()
                evicted = True
            fills = not evicted and 0 < int(0.1 * capacity) <= len(small)
            (main if returns or fills else small)[block] = 0
    return hits


def arc(trace: Sequence[int], capacity: int) -> int:
    """Megiddo and Modha, FAST 2003, Figure 4."""
    t1, t2, b1, b2 = (OrderedDict[int, None]() for _ in range(4))
    target, hits = 0.0, 0

    def replace(block: int) -> None:
        if t1 and (len(t1) > target or (block in b2 and len(t1) == target)):
            b1[t1.popitem(last=False)[0]] = None
        else:
            b2[t2.popitem(last=False)[0]] = None

    for block in trace:
        if block in t1 or block in t2:
            hits += 1
            t1.pop(block, None)
            t2.pop(block, None)
            t2[block] = None
        elif block in b1:
            target = min(capacity, target + max(len(b2) / len(b1), 1.0))
            if len(t1) + len(t2) == capacity:
                replace(block)
            del b1[block]
            t2[block] = None
        elif block in b2:
            target = max(0.0, target - max(len(b1) / len(b2), 1.0))
            if len(t1) + len(t2) == capacity:
                replace(block)
            del b2[block]
            t2[block] = None
        else:
            if len(t1) + len(b1) == capacity:
                if len(t1) < capacity:
                    b1.popitem(last=False)
                    if len(t1) + len(t2) == capacity:
                        replace(block)
                else:
                    t1.popitem(last=False)
            elif len(t1) + len(t2) + len(b1) + len(b2) >= capacity:
                if len(t1) + len(t2) + len(b1) + len(b2) == 2 * capacity:
                    b2.popitem(last=False)
                if len(t1) + len(t2) == capacity:
                    replace(block)
            t1[block] = None
    return hits
