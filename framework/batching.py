"""From a plan's shares to a batch of query segments: which tokens, how many equal steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .execution.contract import Batch, Executor, Segment
from .memory import PageStore
from .policy import Share
from .request import Request


@dataclass(slots=True)
class StepCounts:
    """Tokens of an iteration by kind; ``decode`` those of one step."""

    shares: list[Share]
    prefill: int = 0
    decode: int = 0
    recompute: int = 0


@dataclass(slots=True)
class Batcher:
    """Builds batches; the pages of a share's own tokens are allocated already, those of a longer stretch are not."""

    store: PageStore
    executor: Executor

    def count(self, shares: list[Share]) -> StepCounts:
        """Sort the tokens of ``shares`` into prefill, recomputed and decode, before they are taken."""
        counts = StepCounts(shares)
        for share in shares:
            request = request_of(share)
            if request.decoding:
                counts.decode += 1
            else:
                again = min(request.recompute_left, share.tokens)
                request.recompute_left -= again
                counts.prefill += share.tokens
                counts.recompute += again
        return counts

    def build(self, shares: list[Share], stable: bool, limit_s: float) -> Batch:
        """Take the tokens of ``shares``; if ``stable``, as many decode steps as fit before ``limit_s`` seconds."""
        steps = self._stretch(shares) if stable else 1
        requests = [request_of(share) for share in shares]
        for request in requests if steps > 1 else ():
            request.held.reserve(-(-(request.known_tokens + steps) // self.store.page_size))
        batch = Batch([], steps)
        for share in shares:
            self._add_segments(batch.segments, share)
        if steps > 1:
            if limit_s < float("inf"):
                batch.steps = self.executor.duration_until(batch, limit_s)
            page = self.store.page_size
            for request in requests:
                known = request.known_tokens
                if (known - 1) // page != (known - 2 + batch.steps) // page:
                    self.store.extend(request.held, known - 1, known - 1 + batch.steps)
        return batch

    def _add_segments(self, segments: list[Segment], share: Share) -> None:
        request = request_of(share)
        table = request.held.table
        parts = request.take(share.tokens)
        last = None if request.missing else parts[-1]
        for part in parts:
            sample, forced = part is last, request.forced_token()
            length = part.stop - part.start
            segments.append(Segment(request.id, request.log, part.start, length, table, part.write, sample, forced))

    def _stretch(self, shares: list[Share]) -> int:
        """How many equal decode steps may follow one another: until a request ends or pages run out."""
        longest = self.executor.max_steps
        if longest == 1 or not all(request_of(share).decoding for share in shares):
            return 1
        longest = min(longest, *(request_of(share).remaining_tokens for share in shares))
        known = np.array([share.request.known_tokens for share in shares])
        page, room = self.store.page_size, self.store.available()

        def pages(steps: int) -> int:
            return int((-(-(known - 1 + steps) // page) - -(-known // page)).sum())

        if pages(longest) <= room:
            return longest
        fits = 1
        while longest - fits > 1:
            middle = (fits + longest) // 2
            fits, longest = (middle, longest) if pages(middle) <= room else (fits, middle)
        return fits


def request_of(share: Share) -> Request:
    """The engine's own view of a share's request."""
    assert isinstance(share.request, Request)
    return share.request
