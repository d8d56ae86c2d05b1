"""Pensieve's retention value."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
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
    them (``prefetch=holes``). The value is the same on every tier (section 4.3.1: the host drops in the same order).

    Deviations: T counts the store's ticks, not seconds (recency is logical here); a chunk is whole pages; where only
    leading runs are usable, chunks leave from the end. Ties: the earlier position, then the run released earlier.
    """

    chunk_tokens: int = 32
    max_context: int = 131072

    def __post_init__(self) -> None:
        require_at_least(self, 1, "chunk_tokens", "max_context")

    def bind(self, view: TierView, future: Future | None = None) -> None:
        super().bind(view, future)
        self._idle: dict[RunView, tuple[int, int]] = {}  # run -> its last use, and when it was released
        self._groups: dict[int, dict[RunView, None]] = {}  # idle runs by last use
        self._ticks: list[int] = []  # the groups' keys, sorted
        self._released = 0
        contexts = [0, *(1 << k for k in range(self.max_context.bit_length()))]
        costs_s = [view.costs.recompute_s(n, n + self.chunk_tokens) for n in contexts]
        pages = np.arange(contexts[-1] // view.page_size + 1)
        self._costs_s: list[float] = np.interp(pages * view.page_size, contexts, costs_s).tolist()  # by first page
        self._least_s = min(self._costs_s)

    def released(self, run: RunView) -> None:
        self.removed(run, False)
        self._released += 1
        self._add(run, run.last_use, self._released)

    def split(self, upper: RunView, lower: RunView) -> None:
        if lower in self._idle:
            self._add(upper, *self._idle[lower])

    def removed(self, run: RunView, evicted: bool) -> None:
        if run in self._idle:
            tick, _ = self._idle.pop(run)
            del self._groups[tick][run]
            if not self._groups[tick]:
                del self._groups[tick]
                del self._ticks[bisect_left(self._ticks, tick)]

    def _add(self, run: RunView, tick: int, order: int) -> None:
        self._idle[run] = tick, order
        if tick not in self._groups:
            self._groups[tick] = {}
            insort(self._ticks, tick)
        self._groups[tick][run] = None

    def value(self, run: RunView) -> float:
        """V of the chunk of ``run`` that would leave next."""
        page = run.start + run.pages - 1 if self.view.leaves_only else run.start
        return self._costs_s[min(page, len(self._costs_s) - 1)] / (self.view.tick - run.last_use + 1)

    def victims(self, need: int) -> Iterator[Victim]:
        end: Literal["head", "tail"] = "tail" if self.view.leaves_only else "head"
        chunk = -(-self.chunk_tokens // self.view.page_size)
        heap: list[Entry] = []
        ticks = iter(list(self._ticks))  # longest idle first
        tick = next(ticks, None)
        while need > 0:
            while tick is not None and not (heap and heap[0][0] < self._least_s / (self.view.tick - tick + 1)):
                for run in list(self._groups.get(tick, ())):
                    self._push(heap, run)
                tick = next(ticks, None)
            if not heap:
                return
            run = heapq.heappop(heap)[3]
            if run not in self._idle:  # it became part of another run meanwhile
                continue
            bound = self._least_s / (self.view.tick - tick + 1) if tick is not None else math.inf
            parent, pages = run.parent, self._leaving(run, need, chunk, min(bound, heap[0][0] if heap else math.inf))
            whole = pages == run.pages
            need -= pages
            yield Victim(run, pages, end)
            self._push(heap, self._rest(run, parent, whole))

    def _leaving(self, run: RunView, need: int, chunk: int, limit: float) -> int:
        """Pages of ``run`` that leave one chunk after the other, before anything of value ``limit`` does."""
        if self.view.leaves_only:  # each chunk before the last one is worth less than that
            return min(run.pages, -(-need // chunk) * chunk)
        idle, last = self.view.tick - run.last_use + 1, len(self._costs_s) - 1
        pages, wanted = chunk, min(need, run.pages)
        while pages < wanted and self._costs_s[min(run.start + pages, last)] / idle < limit:
            pages += chunk
        return min(pages, run.pages)

    def _rest(self, run: RunView, parent: RunView | None, whole: bool) -> RunView | None:
        """What may leave next where ``run`` or a part of it has left."""
        if not self.view.leaves_only:
            return None if whole else run
        return parent if whole else run.parent

    def _push(self, heap: list[Entry], run: RunView | None) -> None:
        if run is not None and run in self._idle and self.view.evictable(run):
            heapq.heappush(heap, (self.value(run), run.start, self._idle[run][1], run))
