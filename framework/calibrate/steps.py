"""Timing batches on an executor: all of them in turn, pass after pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..execution.contract import Batch, Executor
from ..execution.contract import Segment as BatchSegment
from ..workloads.tokens import IdLog
from .design import Probe, Segment, largest

MIN_PASSES = 2
Centre = Callable[[Sequence[float] | NDArray[np.float64]], float]


def midmean(times_s: Sequence[float] | NDArray[np.float64]) -> float:
    """The mean of the middle half: like a median it ignores what another process took, with half its variance."""
    ordered = np.sort(np.asarray(times_s, np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def mean(times_s: Sequence[float] | NDArray[np.float64]) -> float:
    """What a run of many steps meets, other processes included."""
    return float(np.mean(times_s))


def spread(times_s: Sequence[float]) -> float:
    """Half the distance of the quartiles, as a share of the midmean."""
    low, high = np.quantile(times_s, (0.25, 0.75))
    return float((high - low) / 2 / midmean(times_s))


@dataclass
class StepTimer:
    """Runs the batches of ``probes`` on ``executor``, whose pool has ``num_pages`` pages, and keeps their times.

    The order is drawn anew for every pass, so that a time in which the machine is slow falls on none in particular.
    Pages of a batch are scattered over the pool, and follow those of the batch before, so that no cache holds them.

    Attributes
    ----------
    times_s: what each run of each probe took, in order of the passes.
    """

    executor: Executor
    probes: Sequence[Probe]
    num_pages: int
    page_size: int
    vocab_size: int
    seed: int = 0
    times_s: dict[Probe, list[float]] = field(init=False)

    def __post_init__(self) -> None:
        if not self.probes:
            raise ValueError("there are 0 probes to time, expected 1 or more")
        self._random = np.random.default_rng([self.seed, 0xCA11B])
        self._order = self._random.permutation(self.num_pages).astype(np.int32)
        longest = largest(list(self.probes))
        self._log = IdLog(self._random.integers(0, self.vocab_size, longest).astype(np.int32))
        self._next = 0
        self._groups = _groups(self.probes)
        self._due: list[list[Probe]] = []
        self.times_s = {probe: [] for probe in self.probes}

    @property
    def passes(self) -> int:
        """How often every batch was timed."""
        return min(len(taken) for taken in self.times_s.values())

    def warm_up(self, on_step: Callable[[], None] = lambda: None) -> float:
        """Run every batch once without keeping its time; the seconds that it took."""
        start_s = perf_counter()
        for probe in self.probes:
            self.executor.run(self._batch(probe))
            on_step()
        return perf_counter() - start_s

    def run(self, seconds: float, on_step: Callable[[], None] = lambda: None) -> None:
        """Time the batches whose turn it is, one at least, for about ``seconds``."""
        stop_s = perf_counter() + seconds
        while True:
            for probe in self._next_group():
                self.times_s[probe].append(self.executor.run(self._batch(probe)).duration_s)
                on_step()
            if perf_counter() >= stop_s:
                return

    def complete(self, passes: int, on_step: Callable[[], None] = lambda: None) -> None:
        """Go on until every batch was timed so often."""
        while self.passes < passes:
            self.run(0.0, on_step)

    def _next_group(self) -> list[Probe]:
        if not self._due:
            self._due = [self._groups[i] for i in self._random.permutation(len(self._groups))]
        return self._due.pop()

    def _batch(self, probe: Probe) -> Batch:
        return Batch([self._segment(part) for part in probe.segments()])

    def _segment(self, part: Segment) -> BatchSegment:
        table = self._table(part.context + part.length)
        return BatchSegment(-1, self._log, part.context, part.length, table, sample=part.sample)

    def _table(self, tokens: int) -> NDArray[np.int32]:
        pages = -(-tokens // self.page_size)
        index = (self._next + np.arange(pages)) % self.num_pages
        self._next = int(index[-1]) + 1
        return self._order[index]


def _groups(probes: Sequence[Probe]) -> list[list[Probe]]:
    """The two batches of a head stay together: their difference is wanted."""
    groups: list[list[Probe]] = []
    for probe in probes:
        if probe.operator == "head" and probe.sampled:
            groups[-1].append(probe)
        else:
            groups.append([probe])
    return groups


def timed(
    timer: StepTimer,
    seconds: float,
    on_step: Callable[[], None] = lambda: None,
    on_plan: Callable[[int], None] = lambda steps: None,
) -> None:
    """Warm up, then time batches until about ``seconds`` have passed in all and each has run :data:`MIN_PASSES` times.

    ``on_plan`` is told how many steps there will be, as soon as that is known.
    """
    first_s = timer.warm_up(on_step)
    passes = max(MIN_PASSES, round((seconds - first_s) / first_s))
    on_plan((passes + 1) * len(timer.probes))
    timer.run(seconds - first_s, on_step)
    timer.complete(MIN_PASSES, on_step)
