"""A miss-ratio curve: one replay for each capacity, with what the best could reach beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..policy import Eviction, PageTrace, RequestHits
from .caches import replay_blocks, replay_prefixes
from .trace import Asking, Semantics

MakePolicy = Callable[[], Eviction]

_BELADY: dict[tuple[bytes, str, int, int, int], int] = {}  # hits found so far: the jobs of a sweep share a process


@dataclass(frozen=True, slots=True)
class Point:
    """A replay at one capacity.

    Attributes
    ----------
    capacity: pages. accesses, hits: pages of requests that are not warm-up. evictions: pages that left to make room.
    refused_requests: requests that need more pages at once than there are (``prefix`` only); they are left out.
    belady_hits: of Belady's policy at this capacity, None if it was not asked for.
    seconds: of the policy's replay alone.
    """

    capacity: int
    accesses: int
    hits: int
    evictions: int
    refused_requests: int
    belady_hits: int | None
    seconds: float

    @property
    def hit_ratio(self) -> float | None:
        """Hits per access."""
        return self.hits / self.accesses if self.accesses else None


@dataclass(frozen=True, slots=True)
class Contest:
    """What is replayed: ``policy``, new for each capacity, and, if wanted, ``belady``, on the pages of ``asking``."""

    asking: Asking
    semantics: Semantics
    policy: MakePolicy
    belady: MakePolicy | None
    warmup: int

    def points(self, capacities: Sequence[int]) -> Iterator[Point]:
        """A point for each of ``capacities``, as they are done."""
        for capacity in capacities:
            yield self._point(capacity)

    def infinite_hits(self) -> int:
        """Hits of a cache that never evicts."""
        trace, known, hits = self.asking.trace, 0, 0  # a page is new where its number is the next one
        for request in range(trace.requests):
            own = trace.pages[trace.bounds[request] : trace.bounds[request + 1]]
            before, known = known, max(known, max(own, default=-1) + 1)
            found = len(own) - (known - before) if self.semantics == "block" else _leading(own, before)
            hits += min(found, trace.limits[request]) * (request >= self.warmup)
        return hits

    def _point(self, capacity: int) -> Point:
        trace, fits = self.asking.trace, np.ones(self.asking.trace.requests, bool)
        if self.semantics == "prefix":
            trace, fits = self.asking.fitting(capacity)
        counted = np.arange(len(fits)) >= self.warmup
        began_s = time.perf_counter()
        done = self._replay(self.policy(), trace, capacity)
        seconds = time.perf_counter() - began_s
        return Point(
            capacity,
            int(self.asking.asked[counted & fits].sum()),
            _sum(done, counted[fits]),
            done.evicted_pages,
            int((counted & ~fits).sum()),
            None if self.belady is None else self._belady_hits(self.belady, trace, capacity, counted[fits]),
            seconds,
        )

    def _belady_hits(self, make: MakePolicy, trace: PageTrace, capacity: int, counted: NDArray[np.bool_]) -> int:
        """Of what is ``counted`` of ``trace``, the requests that fit. They follow from the key, which is of all."""
        key = (self.asking.trace.digest, self.semantics, self.asking.page_tokens, self.warmup, capacity)
        if key not in _BELADY:
            _BELADY[key] = _sum(self._replay(make(), trace, capacity), counted)
        return _BELADY[key]

    def _replay(self, policy: Eviction, trace: PageTrace, capacity: int) -> RequestHits:
        replay = replay_blocks if self.semantics == "block" else replay_prefixes
        return replay(policy, trace, capacity, self.asking.page_tokens)


def default_capacities(distinct: int, points: int) -> list[int]:
    """``points`` capacities, each twice the one before, the largest half of all pages."""
    return sorted({max(1, distinct >> power) for power in range(1, points + 1)})


def _sum(done: RequestHits, counted: NDArray[np.bool_]) -> int:
    return int(np.array(done.hits, np.int64)[counted].sum())


def _leading(own: list[int], known: int) -> int:
    return next((found for found, page in enumerate(own) if page >= known), len(own))
