"""The simulated backend: an executor that computes nothing and takes the time that the cost model says.

How loads and computing overlap: an iteration begins when its ``waits`` have ended. Its layers take equal parts of the
time that the cost model gives them together; layer i begins when layer i - 1 has ended and layer i of every load has
arrived. LM head and overheads follow the last layer, so that no load hides behind them. Only the first step of a decode
stretch can wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .contract import Batch, ModelShape, StepResult
from .cost import CostModel
from .hardware import Hardware
from .links import SimulatedLinks
from .transfers import Transfer

MAX_STEPS = 1 << 20


@dataclass(frozen=True, slots=True)
class SimulatedBackend:
    """The knobs of ``backend=simulated``. ``max_steps``: the longest decode stretch that is taken as one step;
    ``decoupled``: as on the real backend, where it says how keys are cached; no simulated figure depends on it."""

    max_steps: int = MAX_STEPS
    decoupled: bool = False

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps!r} must be >= 1")


class SimulatedExecutor:
    """Implements :class:`~.contract.Executor` on a virtual clock: no tensors, all tokens are -1, nothing is random.

    ``links`` carry what batches wait for; without them a batch may name only transfers that have ended.

    Raises
    ------
    ValueError
        If the weights leave no memory for K/V on ``hardware``, or ``page_size`` or ``max_steps`` is < 1.
    """

    def __init__(
        self,
        shape: ModelShape,
        hardware: Hardware,
        page_size: int,
        *,
        max_steps: int = MAX_STEPS,
        links: SimulatedLinks | None = None,
    ) -> None:
        if not hardware.free_bytes(shape.weight_bytes):
            raise ValueError(
                f"model {shape.name!r} needs {shape.weight_bytes / 1e9:.1f} GB for its weights;"
                f" hardware {hardware.name!r} holds {hardware.devices} x {hardware.memory_bytes / 1e9:.1f} GB,"
                f" of which it may use {hardware.memory_utilization:.0%}"
            )
        self.max_steps = SimulatedBackend(max_steps).max_steps
        self.shape, self.hardware = shape, hardware
        self._costs = CostModel(shape, hardware, page_size)
        self._links = links

    @property
    def costs(self) -> CostModel:
        """The cost model, which is also what policies see."""
        return self._costs

    def run(self, batch: Batch) -> StepResult:
        """The time of ``batch``, what it waited included, and no tokens; a stretch in closed form.

        Runs the clock of the links on to the last end of the batch's transfers.
        """
        sampled, compute_s = self._compute_s(batch, batch.steps)
        if not batch.waits and not batch.loads:
            return StepResult([-1] * sampled, compute_s)
        stall_s = self._stall_s(batch, compute_s if batch.steps == 1 else self._compute_s(batch, 1)[1])
        return StepResult([-1] * sampled, stall_s + compute_s, stall_s=stall_s)

    def duration_until(self, batch: Batch, limit_s: float) -> int:
        """See :class:`~.contract.Executor`; agrees with :meth:`run` to the last bit. O(segments + log steps)."""
        if batch.steps == 1:
            return 1
        waits = batch.waits or batch.loads
        stall_s = self._stall_s(batch, self._compute_s(batch, 1)[1]) if waits else 0.0
        keys = _decode_keys(batch)
        return self._costs.decode_steps_until(len(batch.segments), keys, batch.steps, limit_s, stall_s)

    def close(self) -> None:
        """Nothing is held."""

    def _compute_s(self, batch: Batch, steps: int) -> tuple[int, float]:
        """Sampled tokens of a step, and the time of the batch's first ``steps`` steps if nothing waits."""
        segments, costs = batch.segments, self._costs
        lengths = [segment.length for segment in segments]
        sampled = sum([segment.sample for segment in segments])
        if sampled == len(segments) == sum(lengths):  # all decode
            return sampled, costs.decode_s(sampled, _decode_keys(batch), steps)
        if batch.steps > 1:
            raise ValueError(f"a batch of steps={batch.steps} must hold sampled segments of length 1 only")
        query_lens = np.array(lengths, dtype=np.int64)
        starts = np.array([segment.start for segment in segments], dtype=np.int64)
        return sampled, costs.step_s(query_lens, starts + query_lens, sampled)

    def _stall_s(self, batch: Batch, step_s: float) -> float:
        """How much later the batch, whose first step computes for ``step_s``, ends for its waits and loads."""
        self._settle([*batch.waits, *batch.loads], batch.start_s)
        stall_s = max([0.0, *[_end_s(transfer) - batch.start_s for transfer in batch.waits]])
        if not batch.loads:
            return stall_s
        sampled = sum([segment.sample for segment in batch.segments])
        layers_s = max(0.0, step_s - self._costs.outside_s(len(batch.segments), sampled))
        return max(
            stall_s, _late_s(batch.loads, batch.start_s, layers_s / self.shape.num_layers, self.shape.num_layers)
        )

    def _settle(self, transfers: list[Transfer], now_s: float) -> None:
        if self._links is not None:
            self._links.settle(transfers, now_s)
        elif any(not transfer.done for transfer in transfers):
            raise ValueError("a batch waits for transfers, but the executor was given links=None")


def _decode_keys(batch: Batch) -> int:
    """Keys that the first step of a decode batch sees."""
    return sum([segment.start for segment in batch.segments]) + len(batch.segments)


def _end_s(transfer: Transfer) -> float:
    assert transfer.end_s is not None
    return transfer.end_s


def _late_s(loads: Iterable[Transfer], start_s: float, layer_s: float, num_layers: int) -> float:
    """How much later the last layer ends for waiting at each layer i until its part of every load is there.

    Without waiting layer i begins at start + i * layer_s, so the answer is max(0, arrival of layer i - that), over all
    layers and loads. O(loads log loads), and layers for the few loads that can matter: those behind others on one link
    end later in every layer.
    """
    late_s = 0.0
    for load in sorted(loads, key=_end_s, reverse=True):
        first, count = load.move.layers or (0, num_layers)
        first_s = start_s + first * layer_s
        if _end_s(load) - first_s <= late_s:  # as if all of it were needed at its first layer
            continue
        if load.layers < count or len(load.layer_ends_s) < load.layers:
            late_s = _end_s(load) - first_s
        else:
            waited_s = np.array(load.layer_ends_s) - first_s - layer_s * np.arange(load.layers)
            late_s = max(late_s, float(waited_s.max()))
    return late_s
