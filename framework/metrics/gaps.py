"""Times between consecutive output tokens, kept as (gap, how many such gaps)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from .token_times import Shared, Ticks, TokenTimes

Pairs = tuple[NDArray[np.float64], NDArray[np.int64]]

_MAX_PAIRS = 1 << 22
_BATCH = 1 << 15
_BINS_PER_OCTAVE = 4096


class TokenGaps:
    """A weighted multiset of gaps in seconds.

    Exact up to ``max_pairs`` distinct stretches; beyond, gaps are rounded to 2^(1/4096) (0.02 %) and merged, so that
    memory stays bounded however long the run. The mean and the maximum stay exact. ``mistimed`` says which requests
    have times for another number of tokens than they have output.
    """

    def __init__(self, max_pairs: int = _MAX_PAIRS) -> None:
        self._max_pairs = max_pairs
        self._pending: list[tuple[float, int]] = []
        self._requests: list[tuple[int, int, int, bool]] = []  # id, pairs, output tokens, keep
        self._blocks: list[Pairs] = []
        self._pairs = 0
        self._count = 0
        self._total_s = 0.0
        self._max_s = 0.0
        self._mistimed: list[str] = []
        self._covers: dict[Ticks, array[int]] = {}  # by stretch: how many requests more than before share its gap

    def add(
        self, request: int, token_times: Iterable[tuple[float, int]], output_tokens: int, keep: bool = True
    ) -> None:
        """Take one request's ``token_times`` (see ``RequestRecord``); with ``keep`` False they are only checked.

        O(1) in those that it shares with others.
        """
        first = len(self._pending)
        if isinstance(token_times, TokenTimes):
            output_tokens -= self._add_parts(token_times, keep)
        else:
            self._pending.extend(token_times)
        self._requests.append((request, len(self._pending) - first, output_tokens, keep))
        if len(self._pending) >= _BATCH or len(self._requests) >= _BATCH:
            self._flush()

    def _add_parts(self, times: TokenTimes, keep: bool) -> int:
        """Tokens of the shared parts beyond the first stretch of each, which is taken as the request's own."""
        shared = 0
        for part in times.parts:
            if isinstance(part, Shared):
                self._pending.append(part.ticks.pair(part.first))
                if part.stop - part.first > 1:
                    shared += part.ticks.tokens(part.first + 1, part.stop)
                    self._pending.append((part.ticks.pair(part.stop - 1)[0], 0))
                    if keep:
                        self._cover(part)
            else:
                self._pending.append(part)
        return shared

    def _cover(self, part: Shared) -> None:
        change = self._covers.setdefault(part.ticks, array("q"))
        if len(change) <= part.stop:
            change.extend([0] * (2 * part.stop - len(change) + 1))
        change[part.first + 1] += 1
        change[part.stop] -= 1

    @property
    def count(self) -> int:
        """How many gaps."""
        self._flush()
        return self._count + sum(int(weights.sum()) for _, weights in self._shared())

    @property
    def mean_s(self) -> float:
        """Exact mean in seconds; 0 if there is no gap."""
        self._flush()
        total_s = self._total_s + sum(float(gaps_s @ weights) for gaps_s, weights in self._shared())
        return total_s / count if (count := self.count) else 0.0

    @property
    def max_s(self) -> float:
        """Exact maximum in seconds; 0 if there is no gap."""
        self._flush()
        return max([self._max_s, *(float(gaps_s.max()) for gaps_s, _ in self._shared())])

    @property
    def mistimed(self) -> list[str]:
        """One line per request whose times contradict its output, the first few."""
        self._flush()
        return self._mistimed

    def weighted(self) -> Pairs:
        """Gaps [pairs] in seconds and their weights [pairs]."""
        self._flush()
        blocks = [*self._blocks, *self._shared()]
        if len(blocks) == 1:
            return blocks[0]
        values, weights = zip(*blocks, strict=True) if blocks else ([np.empty(0)], [np.empty(0, np.int64)])
        return np.concatenate(values), np.concatenate(weights)

    def _shared(self) -> list[Pairs]:
        """The gaps of stretches that several requests share."""
        found: list[Pairs] = []
        for ticks, change in self._covers.items():
            ends_s, tokens = ticks.arrays()
            weights = np.cumsum(np.array(change, np.int64)[: len(ends_s)]) * tokens[: len(change)]
            kept = np.flatnonzero(weights)
            found.append(((ends_s[kept] - ends_s[kept - 1]) / tokens[kept], weights[kept]))
        return [pairs for pairs in found if len(pairs[0])]

    def _flush(self) -> None:
        """Turn what is pending into arrays: many requests at once, so that a short one costs little."""
        if not self._requests:
            return
        flat = np.fromiter(chain.from_iterable(self._pending), np.float64, 2 * len(self._pending)).reshape(-1, 2)
        ids, pairs, tokens, keep = np.array(self._requests, np.int64).T
        self._pending, self._requests = [], []
        times, counts = flat[:, 0], flat[:, 1].astype(np.int64)
        owner = np.repeat(np.arange(len(ids)), pairs)
        self._check(ids, np.bincount(owner, counts, len(ids)).astype(np.int64), tokens)
        inside = np.flatnonzero((owner[1:] == owner[:-1]) & (keep[owner[1:]] > 0) & (counts[1:] > 0))
        self._append((times[inside + 1] - times[inside]) / counts[inside + 1], counts[inside + 1])

    def _check(self, ids: NDArray[np.int64], timed: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        for i in np.flatnonzero(timed != tokens)[: 8 - len(self._mistimed)]:
            self._mistimed.append(f"request {ids[i]} has times for {timed[i]} of {tokens[i]} tokens")

    def _append(self, gaps_s: NDArray[np.float64], weights: NDArray[np.int64]) -> None:
        if not len(gaps_s):
            return
        self._blocks.append((gaps_s, weights))
        self._pairs += len(gaps_s)
        self._count += int(weights.sum())
        self._total_s += float(gaps_s @ weights)
        self._max_s = max(self._max_s, float(gaps_s.max()))
        if self._pairs > self._max_pairs:
            self._merge()

    def _merge(self) -> None:
        values, weights = (np.concatenate(column) for column in zip(*self._blocks, strict=True))
        bins = np.round(np.log2(np.maximum(values, 1e-12)) * _BINS_PER_OCTAVE).astype(np.int64)
        kept, where = np.unique(bins, return_inverse=True)
        self._blocks = [(np.exp2(kept / _BINS_PER_OCTAVE), np.bincount(where, weights).astype(np.int64))]
        self._pairs = len(kept)
