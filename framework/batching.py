"""From a plan's shares to a batch of query segments: which tokens, how many equal steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .execution.contract import Batch, Executor, Segment
from .memory import PageStore
from .policy import Tier
from .request import Request


@dataclass(slots=True)
class Work:
    """A request's part in an iteration: ``prefill``, or one decode token. The pages of its tokens are allocated."""

    request: Request
    tokens: int
    prefill: bool


@dataclass(slots=True)
class StepCounts:
    """Tokens of an iteration by kind; ``decode`` those of one step."""

    prefill: int = 0
    decode: int = 0
    recompute: int = 0


@dataclass(slots=True)
class Batcher:
    """Builds batches. The pages that only later steps of a stretch need are allocated here."""

    store: PageStore
    executor: Executor

    def count(self, work: list[Work]) -> StepCounts:
        """Sort the tokens of ``work`` into prefill, recomputed and decode, before they are taken."""
        counts = StepCounts()
        for item in work:
            request = item.request
            if request.decoding:
                counts.decode += 1
            else:
                again = min(request.recompute_left, item.tokens)
                request.recompute_left -= again
                counts.prefill += item.tokens
                counts.recompute += again
        return counts

    def build(self, work: list[Work], stable: bool, limit_s: float) -> Batch:
        """Take the tokens of ``work``; if ``stable``, as many decode steps as fit before ``limit_s`` seconds."""
        known = np.array([item.request.known_tokens for item in work])
        steps = self._stretch(work, known) if stable else 1
        if steps > 1:
            self._reserve(work, steps)
        segments: list[Segment] = []
        for item in work:
            self._add_segments(segments, item)
        batch = Batch(segments, steps)
        if steps > 1:
            if limit_s < float("inf"):
                batch.steps = self.executor.duration_until(batch, limit_s)
            self._allocate(work, self._new_pages(known, batch.steps), batch.steps)
        return batch

    def _add_segments(self, segments: list[Segment], item: Work) -> None:
        request = item.request
        table, log = request.held.table, request.log
        if request.decoding:
            start = request.take_newest()
            segments.append(Segment(request.id, log, start, 1, table, True, True, request.forced_token()))
            return
        parts = request.take(item.tokens)
        last = None if request.missing else parts[-1]
        for part in parts:
            sample, length = part is last, part.stop - part.start
            forced = request.forced_token() if sample else -1
            segments.append(Segment(request.id, log, part.start, length, table, part.write, sample, forced))

    def _stretch(self, work: list[Work], known: NDArray[np.int64]) -> int:
        """How many equal decode steps may follow one another: until a request ends or pages run out."""
        longest = self.executor.max_steps
        if longest == 1 or not all(item.request.decoding for item in work):
            return 1
        longest = min(longest, *(item.request.remaining_tokens for item in work))
        room = self.store.available()
        if int(self._new_pages(known, longest).sum()) <= room:
            return longest
        fits = 1
        while longest - fits > 1:
            middle = (fits + longest) // 2
            fits, longest = (middle, longest) if int(self._new_pages(known, middle).sum()) <= room else (fits, middle)
        return fits

    def _new_pages(self, known: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
        """Pages that ``steps`` decode steps need beyond those of the first."""
        page = self.store.page_size
        needed: NDArray[np.int64] = (known + steps - 2) // page - (known - 1) // page
        return needed

    def _reserve(self, work: list[Work], steps: int) -> None:
        for item in work:
            item.request.held.reserve(-(-(item.request.known_tokens + steps) // self.store.page_size))

    def _allocate(self, work: list[Work], pages: NDArray[np.int64], steps: int) -> None:
        self.store.room.make(Tier.DEVICE, int(pages.sum()))
        for index in np.flatnonzero(pages):
            request = work[index].request
            request.allocate(self.store, request.known_tokens, request.known_tokens - 1 + steps)
