"""What recomputing and loading cost on this machine, measured when a policy first asks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..policy import Tier
from ..workloads.tokens import IdLog
from .contract import Batch, Segment

if TYPE_CHECKING:
    from .torch_executor import TorchExecutor

PROBE_TOKENS = 256
PROBE_BYTES = 16 * 2**20
REPEATS = 3


@dataclass(frozen=True, slots=True)
class CostLine:
    """Time of n tokens after c others: ``base_s + token_s * n + pair_s * n * (c + n / 2)``."""

    base_s: float
    token_s: float
    pair_s: float

    def at(self, start: int, stop: int) -> float:
        """Seconds for the tokens ``start`` .. ``stop``; 0 for none."""
        count = stop - start
        return self.base_s + self.token_s * count + self.pair_s * count * (start + stop) / 2 if count > 0 else 0.0


class MeasuredCosts:
    """:class:`policy.Costs` of a real model: three small forward passes and one copy, run at the first question.

    The passes write no K/V; they read whatever the pool's page 0 holds.
    """

    def __init__(self, executor: TorchExecutor, page_size: int) -> None:
        self._executor = executor
        self._page_size = page_size
        self._line: CostLine | None = None
        self._copy_bytes_per_s = 0.0

    def recompute_s(self, start: int, stop: int) -> float:
        """Seconds to compute the tokens ``start`` .. ``stop``, given everything before them."""
        if self._line is None:
            self._line = self._measure()
        return self._line.at(start, stop)

    def load_s(self, tokens: int, tier: Tier) -> float:
        """Seconds to copy ``tokens`` from the host; 0 on the device itself, ``inf`` from a tier not measured."""
        if tier == Tier.DEVICE or tokens <= 0:
            return 0.0
        if tier != Tier.HOST:
            return math.inf
        if not self._copy_bytes_per_s:
            self._copy_bytes_per_s = self._measure_copy()
        return tokens * self._executor.shape.kv_bytes_per_token / self._copy_bytes_per_s

    def _measure(self) -> CostLine:
        far = max(self._executor.shape.max_positions - PROBE_TOKENS, 0) // 2
        count = min(PROBE_TOKENS, self._executor.shape.max_positions - far)
        one_s, near_s, far_s = self._time(0, 1), self._time(0, count), self._time(far, count)
        pair_s = max(far_s - near_s, 0.0) / (count * far) if far else 0.0
        token_s = max(near_s - one_s - pair_s * count * count / 2, 0.0) / max(count - 1, 1)
        return CostLine(max(one_s - token_s, 0.0), token_s, pair_s)

    def _time(self, start: int, length: int) -> float:
        table = np.zeros(-(-(start + length) // self._page_size), dtype=np.int32)
        log = IdLog(np.zeros(start + length, dtype=np.int32))
        segment = Segment(-1, log, start, length, table, write=False, sample=True)
        times = [self._executor.run(Batch([segment])).duration_s for _ in range(REPEATS + 1)]
        return median(times[1:])  # the first warms up

    def _measure_copy(self) -> float:
        source = torch.zeros(PROBE_BYTES, dtype=torch.uint8, pin_memory=self._executor.pool.is_cuda)
        target = torch.zeros(PROBE_BYTES, dtype=torch.uint8, device=self._executor.pool.device)
        times = []
        for _ in range(REPEATS + 1):
            start_s = perf_counter()
            target.copy_(source)
            if target.is_cuda:
                torch.cuda.synchronize(target.device)
            times.append(perf_counter() - start_s)
        return PROBE_BYTES / median(times[1:])
