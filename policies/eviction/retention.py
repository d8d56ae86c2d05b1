"""Pensieve's retention value."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...framework.policy import Eviction, Future, RunView, TierView, Victim, register, require_at_least

Entry = tuple[float, int, int, RunView]


@register("eviction", "retention")
@dataclass
class RetentionValue(Eviction):
    """Yu et al., "Stateful LLM serving with Pensieve", EuroSys 2025, section 4.3.1: V = Cost(l) / T, smallest first.

    Cost(l) is the time to compute a chunk of ``chunk_tokens`` that attends to l tokens, T how long the conversation has
    been idle. The cost curve is taken at power-of-two contexts up to ``max_context`` and interpolated linearly between
    them. Because the cost grows with l, the leading chunks of a conversation leave first, and the system recomputes
    them (``prefetch=holes``).

    Deviations: T counts the store's ticks, not seconds (recency is logical here); a chunk is whole pages; where only
    leading runs are usable, chunks leave from the end. Ties: the earlier position, then the run released earlier.
    """

    chunk_tokens: int = 32
    max_context: int = 131072

    def __post_init__(self) -> None:
        require_at_least(self, 1, "chunk_tokens", "max_context")

    def bind(self, view: TierView, future: Future | None = None) -> None:
        super().bind(view, future)
        self._idle: dict[RunView, None] = {}
        self._contexts = np.array([0, *(1 << k for k in range(self.max_context.bit_length()))])
        chunk = self.chunk_tokens
        self._costs_s = np.array([view.costs.recompute_s(n, n + chunk) for n in self._contexts.tolist()])

    def released(self, run: RunView) -> None:
        self._idle[run] = None

    def split(self, upper: RunView, lower: RunView) -> None:
        if lower in self._idle:
            self._idle[upper] = None

    def removed(self, run: RunView, evicted: bool) -> None:
        self._idle.pop(run, None)

    def value(self, run: RunView) -> float:
        """V of the chunk of ``run`` that would leave next."""
        page = run.start + run.pages - 1 if self.view.leaves_only else run.start
        cost_s = np.interp(page * self.view.page_size, self._contexts, self._costs_s)
        return float(cost_s) / (self.view.tick - run.last_use + 1)

    def victims(self, need: int) -> Iterator[Victim]:
        end: Literal["head", "tail"] = "tail" if self.view.leaves_only else "head"
        chunk = -(-self.chunk_tokens // self.view.page_size)
        heap: list[Entry] = [self._entry(run, n) for n, run in enumerate(self._idle) if self.view.evictable(run)]
        heapq.heapify(heap)
        while need > 0 and heap:
            _, _, order, run = heapq.heappop(heap)
            parent, pages = run.parent, min(run.pages, chunk)
            whole = pages == run.pages
            need -= pages
            yield Victim(run, pages, end)
            rest = self._rest(run, parent, whole)
            if rest is not None:
                heapq.heappush(heap, self._entry(rest, order))

    def _rest(self, run: RunView, parent: RunView | None, whole: bool) -> RunView | None:
        """What may leave next where ``run`` or a part of it has left."""
        if not self.view.leaves_only:
            return None if whole else run
        rest = parent if whole else run.parent
        return rest if rest is not None and rest in self._idle and self.view.evictable(rest) else None

    def _entry(self, run: RunView, order: int) -> Entry:
        return (self.value(run), run.start, order, run)
