"""The simulated backend: an executor that computes nothing and takes the time that the cost model says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .contract import Batch, ModelShape, StepResult
from .cost import CostModel
from .hardware import Hardware

MAX_STEPS = 1 << 20


@dataclass(frozen=True, slots=True)
class SimulatedBackend:
    """The knobs of ``backend=simulated``. ``max_steps``: the longest decode stretch that is taken as one step."""

    max_steps: int = MAX_STEPS

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps!r} must be >= 1")


class SimulatedExecutor:
    """Implements :class:`~.contract.Executor` on a virtual clock: no tensors, all tokens are -1, nothing is random.

    Raises
    ------
    ValueError
        If the weights leave no memory for K/V on ``hardware``, or ``page_size`` or ``max_steps`` is < 1.
    """

    def __init__(self, shape: ModelShape, hardware: Hardware, page_size: int, *, max_steps: int = MAX_STEPS) -> None:
        if not hardware.free_bytes(shape.weight_bytes):
            raise ValueError(
                f"model {shape.name!r} needs {shape.weight_bytes / 1e9:.1f} GB for its weights;"
                f" hardware {hardware.name!r} holds {hardware.devices} x {hardware.memory_bytes / 1e9:.1f} GB,"
                f" of which it may use {hardware.memory_utilization:.0%}"
            )
        self.max_steps = SimulatedBackend(max_steps).max_steps
        self.shape, self.hardware = shape, hardware
        self._costs = CostModel(shape, hardware, page_size)

    @property
    def costs(self) -> CostModel:
        """The cost model, which is also what policies see."""
        return self._costs

    def run(self, batch: Batch) -> StepResult:
        """The time of ``batch`` and no tokens; a stretch in closed form."""
        segments, costs = batch.segments, self._costs
        lengths = [segment.length for segment in segments]
        sampled = sum([segment.sample for segment in segments])
        if sampled == len(segments) == sum(lengths):  # all decode
            duration_s = costs.decode_s(sampled, _decode_keys(batch), batch.steps)
        elif batch.steps > 1:
            raise ValueError(f"a batch of steps={batch.steps} must hold sampled segments of length 1 only")
        else:
            query_lens = np.array(lengths, dtype=np.int64)
            starts = np.array([segment.start for segment in segments], dtype=np.int64)
            duration_s = costs.step_s(query_lens, starts + query_lens, sampled)
        return StepResult([-1] * sampled, duration_s)

    def duration_until(self, batch: Batch, limit_s: float) -> int:
        """See :class:`~.contract.Executor`; agrees with :meth:`run` to the last bit. O(segments + log steps)."""
        if batch.steps == 1:
            return 1
        return self._costs.decode_steps_until(len(batch.segments), _decode_keys(batch), batch.steps, limit_s)

    def close(self) -> None:
        """Nothing is held."""


def _decode_keys(batch: Batch) -> int:
    """Keys that the first step of a decode batch sees."""
    return sum([segment.start for segment in batch.segments]) + len(batch.segments)
