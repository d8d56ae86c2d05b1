"""An executor whose times are known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from kvarena.framework.execution.contract import Batch, StepResult

DENSE_S, TOKEN_S, HEAD_S, PAIR_S, KEY_S = 4e-3, 1e-4, 3e-4, 9e-8, 7e-7


@dataclass
class KnownExecutor:
    """Takes what a formula says, ``noise`` of it by chance, now and then three times as long (another process ran)."""

    noise: float = 0.0
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    batches: list[Batch] = field(default_factory=list)

    @staticmethod
    def seconds(batch: Batch) -> float:
        """Without noise."""
        tokens = sum(part.length for part in batch.segments)
        rows = sum(part.sample for part in batch.segments)
        seconds = DENSE_S + TOKEN_S * tokens + HEAD_S * rows
        for part in batch.segments:
            pairs = part.length * (part.start + (part.length + 1) / 2)
            seconds += PAIR_S * pairs if part.length > 1 else KEY_S * (part.start + 1)
        return seconds

    def run(self, batch: Batch) -> StepResult:
        """See the contract."""
        self.batches.append(batch)
        factor = 1 + self.noise * self.random.standard_normal()
        factor *= 3.0 if self.noise and self.random.random() < 0.1 else 1.0
        return StepResult([], self.seconds(batch) * max(factor, 0.2))


@pytest.fixture
def known() -> type[KnownExecutor]:
    """The class."""
    return KnownExecutor
