"""Prefix caches written page by page from their definition: slow, and independent of what they check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvarena.framework.policy import PageTrace

Chain = tuple[int, ...]


@dataclass
class Page:
    """A resident page: how often requests used it, who used it last, who stored it, and when it is used next."""

    uses: int
    last: int
    stored: int
    due: float


Value = Callable[[Page], object]  # the smallest leaves first; among equals the deepest

VALUES: dict[str, Value] = {
    "lru": lambda page: page.last,
    "fifo": lambda page: page.stored,
    "lfu": lambda page: (page.uses, page.last),
    "slru": lambda page: (page.uses >= 2, page.last),
    "belady": lambda page: -page.due,
}


def tree_cache(trace: PageTrace, capacity: int, value: Value) -> tuple[list[int], int]:
    """Hits per request and pages that left. A page is known by its whole context; only one that none follows leaves."""
    chains = [tuple(trace.pages[a:b]) for a, b in zip(trace.bounds, trace.bounds[1:], strict=False)]
    cache: dict[Chain, Page] = {}
    hits, left = [], 0
    for now, chain in enumerate(chains):
        contexts = [chain[: n + 1] for n in range(len(chain))]
        held = [context for context in contexts if context in cache]
        hits.append(min(len(held), trace.limits[now]))
        for context in held[: hits[-1]]:
            cache[context].uses += 1
        own = contexts + [(*chain, -1 - now)] * trace.tails[now]
        while len(cache) + len(own) - len(held) > capacity:
            parents = {context[:-1] for context in cache}
            leaves = [context for context in cache if context not in parents and context not in own]
            del cache[min(leaves, key=lambda context: (value(cache[context]), -len(context)))]
            left += 1
        for context in own:
            cache.setdefault(context, Page(1, now, now, float("inf")))
        for context in own:
            later = (n for n in range(now + 1, len(chains)) if chains[n][: len(context)] == context)
            cache[context].last, cache[context].due = now, next(later, float("inf"))
    return hits, left


def free_queue(trace: PageTrace, capacity: int) -> list[int]:
    """vLLM's block pool: a queue of slots in the order in which they are taken; a slot keeps its page until then."""
    queue: list[int | None] = [None] * capacity
    hits = []
    for now, (first, stop) in enumerate(zip(trace.bounds, trace.bounds[1:], strict=False)):
        own = trace.pages[first:stop]
        held = 0
        while held < len(own) and own[held] in queue:
            queue.remove(own[held])
            held += 1
        hits.append(min(held, trace.limits[now]))
        unkeyed = [-1 - now] * trace.tails[now]
        del queue[: len(own) - held + len(unkeyed)]
        queue += [*unkeyed, *reversed(own)]
        assert len(queue) == capacity
    return hits
