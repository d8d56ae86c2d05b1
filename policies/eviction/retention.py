"""Pensieve's retention value: what is cheap to compute again and long idle leaves first, chunk by chunk."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...framework.policy import Eviction, Future, RunView, TierView, Victim, register, require_at_least
from .idle_runs import IdleRuns

Entry = tuple[float, int, int, RunView]  # value of the next chunk, its page, when the run was released, the run
HALVINGS, CLOSE = 30, 8  # of the values between which what leaves and what stays part; until so few chunks are missing


@register("eviction", "retention")
@dataclass
class RetentionValue(Eviction):
    """Yu et al., "Stateful LLM serving with Pensieve", EuroSys 2025, section 4.3.1: V = Cost(l) / T, smallest first.

    Cost(l) is the time to compute a chunk of ``chunk_tokens`` that attends to l tokens, T how long the conversation has
    been idle. The cost curve is taken at power-of-two contexts up to ``max_context``, linear between them and never
    falling. Because the cost grows with l, the leading chunks of a conversation leave first, and the system recomputes
    them (``prefetch=holes``). The value is the same on every tier (section 4.3.1: the host drops in the same order).

    Deviations: T counts the store's ticks, not seconds (recency is logical here); a chunk is whole pages; where only
    leading runs are usable, chunks leave from the end. Ties: the earlier position, then the run released earlier. All
    that leaves of a run leaves together, when its first chunk does.
    """

    trims: ClassVar[bool] = True
    chunk_tokens: int = 32
    max_context: int = 131072

    def __post_init__(self) -> None:
        require_at_least(self, 1, "chunk_tokens", "max_context")

    def bind(self, view: TierView, future: Future | None = None) -> None:
        super().bind(view, future)
        self._idle = IdleRuns()
        contexts = [0, *(1 << k for k in range(self.max_context.bit_length()))]
        costs_s = [view.costs.recompute_s(n, n + self.chunk_tokens) for n in contexts]
        pages = np.arange(contexts[-1] // view.page_size + 1)
        curve_s = np.maximum.accumulate(np.interp(pages * view.page_size, contexts, costs_s))
        self._costs_s: list[float] = curve_s.tolist()  # by first page
        self._chunk = -(-self.chunk_tokens // view.page_size)

    def released(self, run: RunView) -> None:
        self._idle.add(run)

    def split(self, upper: RunView, lower: RunView) -> None:
        self._idle.split(upper, lower)

    def removed(self, run: RunView, evicted: bool) -> None:
        self._idle.remove(run)

    def value(self, run: RunView) -> float:
        """V of the chunk of ``run`` that would leave next."""
        return self._value(run, run.start + run.pages - 1 if self.view.leaves_only else run.start)

    def _value(self, run: RunView, page: int) -> float:
        return self._costs_s[min(page, len(self._costs_s) - 1)] / (self.view.tick - run.last_use + 1)

    def _candidates(self) -> Iterator[Entry]:
        """Runs that may leave, the smallest value first; the longest idle are looked at first."""
        heap: list[Entry] = []
        for tick, runs in self._idle.longest_first():
            bound = self._costs_s[0] / (self.view.tick - tick + 1)
            while heap and heap[0][0] < bound:
                yield heapq.heappop(heap)
            for run in runs:
                if self.view.evictable(run):
                    heapq.heappush(heap, (self.value(run), run.start, self._idle.order(run), run))
        while heap:
            yield heapq.heappop(heap)

    def victims(self, need: int) -> Iterator[Victim]:
        if need > 0:
            yield from self._from_tails(need) if self.view.leaves_only else self._from_heads(need)

    def _from_tails(self, need: int) -> Iterator[Victim]:
        """From the end of a run each chunk is worth less than the one before it has left."""
        candidates, heap = self._candidates(), list[Entry]()
        following = next(candidates, None)
        while need > 0 and (heap or following is not None):
            if following is None or (heap and heap[0][:3] < following[:3]):
                run = heapq.heappop(heap)[3]
            else:
                run, following = following[3], next(candidates, None)
            if run not in self._idle:  # it became part of another run meanwhile
                continue
            pages = min(run.pages, -(-need // self._chunk) * self._chunk)
            parent = run.parent if pages == run.pages else None
            need -= pages
            yield Victim(run, pages)
            rest = parent or (run if run in self._idle else run.parent)
            if rest is not None and rest in self._idle and self.view.evictable(rest):
                heapq.heappush(heap, (self.value(rest), rest.start, self._idle.order(rest), rest))

    def _from_heads(self, need: int) -> Iterator[Victim]:
        """Chunks from the smallest value up."""
        chosen, low, high = list[Entry](), 0.0, 2 * self._costs_s[-1]
        for candidate in self._candidates():
            if len(chosen).bit_count() == 1:  # now and then
                if sum([self._below(entry[3], candidate[0]) for entry in chosen]) >= need:
                    high = candidate[0]
                    break
                low = candidate[0]
            chosen.append(candidate)
        every = {entry[3]: entry[3].pages for entry in chosen}
        for run, pages in (every if sum(every.values()) <= need else self._shares(chosen, need, low, high)).items():
            if run in self._idle:  # else it became part of another run meanwhile
                yield Victim(run, min(pages, run.pages), "head")

    def _below(self, run: RunView, value: float) -> int:
        """Pages of ``run`` in chunks that are worth less than ``value``."""
        first, costs_s, cost_s = run.start, self._costs_s, value * (self.view.tick - run.last_use + 1)
        end = bisect_left(costs_s, cost_s, min(first, len(costs_s))) if cost_s <= costs_s[-1] else first + run.pages
        return min(run.pages, -(-(end - first) // self._chunk) * self._chunk) if end > first else 0

    def _shares(self, chosen: list[Entry], need: int, low: float, high: float) -> dict[RunView, int]:
        """Pages that leave of each run; fewer than ``need`` are worth less than ``low``, as many less than ``high``."""
        ends = [self._value(run, run.start + run.pages - 1) for _, _, _, run in chosen]
        low, high = max(low, chosen[0][0]), min(high, max(ends))
        for _ in range(HALVINGS if len(chosen) > 1 else 0):
            middle = (low + high) / 2
            short = need - sum([self._below(entry[3], middle) for entry in chosen])
            low, high = (low, middle) if short <= 0 else (middle, high)
            if 0 < short <= CLOSE * self._chunk:
                break
        pages = {entry[3]: self._below(entry[3], low) for entry in chosen}
        need -= sum(pages.values())
        heap: list[Entry] = []
        for _, _, order, run in chosen:
            self._push_next(heap, run, pages[run], order)
        while need > 0 and heap:
            _, _, order, run = heapq.heappop(heap)
            taken = min(self._chunk, run.pages - pages[run])
            pages[run] += taken
            need -= taken
            self._push_next(heap, run, pages[run], order)
        return {run: number for run, number in pages.items() if number}

    def _push_next(self, heap: list[Entry], run: RunView, taken: int, order: int) -> None:
        if taken < run.pages:
            heapq.heappush(heap, (self._value(run, run.start + taken), run.start + taken, order, run))
