"""What recomputing and loading cost on this machine, measured when a policy first asks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..policy import Tier
from ..workloads.tokens import IdLog
from .contract import Batch, Segment
from .host_pool import host_pool
from .page_copies import page_copies

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
    """:class:`policy.Costs` of a real model: small forward passes and copies, run at the first question.

    The passes write no K/V; they read whatever the pool's page 0 holds. The copies touch memory of their own.

    Attributes
    ----------
    disk_bytes_per_s: measures how fast the disk tier reads, blocking; called once, when first needed. 0: nothing is
        known to be worth reading. None: there is no such tier.
    """

    def __init__(self, executor: TorchExecutor, page_size: int) -> None:
        self.disk_bytes_per_s: Callable[[], float] | None = None
        self._executor = executor
        self._page_size = page_size
        self._line: CostLine | None = None
        self._token_s: dict[Tier, float] = {}

    def recompute_s(self, start: int, stop: int) -> float:
        """Seconds to compute the tokens ``start`` .. ``stop``, given everything before them."""
        if self._line is None:
            self._line = self._measure()
        return self._line.at(start, stop)

    def load_s(self, tokens: int, tier: Tier) -> float:
        """Seconds to bring ``tokens`` to the device by an idle link: 0 on the device itself, ``inf`` from a tier that
        there is not. From the disk, reading and copying follow each other."""
        if tier == Tier.DEVICE or tokens <= 0:
            return 0.0
        if tier not in self._token_s:
            self._token_s[tier] = self._measure_load(tier)
        return tokens * self._token_s[tier]

    def _measure_load(self, tier: Tier) -> float:
        """Seconds per token."""
        token_bytes = self._executor.shape.kv_bytes_per_token
        if tier == Tier.HOST:
            return token_bytes * self._measure_copy()
        if tier != Tier.DISK or self.disk_bytes_per_s is None:
            return math.inf
        bytes_per_s = self.disk_bytes_per_s()
        return token_bytes / bytes_per_s + self.load_s(1, Tier.HOST) if bytes_per_s > 0 else math.inf

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
        """Seconds per byte from host to device, layer by layer, by what the links use."""
        pool = self._executor.pool
        page_bytes = pool[0].numel() * pool.element_size()
        pages = max(1, PROBE_BYTES // page_bytes)
        source, target = (
            host_pool(pool, pages),
            torch.zeros(pages, *pool.shape[1:], dtype=pool.dtype, device=pool.device),
        )
        slots, copies, times = np.arange(pages, dtype=np.int32), page_copies(pool.device), []
        for _ in range(REPEATS + 1):
            start_s = perf_counter()
            copies.copy((source, target), (slots, slots[::-1]), (0, pool.shape[1]), lambda layers, mark: None)
            times.append(perf_counter() - start_s)
        return median(times[1:]) / (pages * page_bytes)
