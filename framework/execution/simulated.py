"""The simulated backend: an executor that computes nothing and takes the time that the cost model says.

How loads and computing overlap: an iteration begins when its ``waits`` have ended. Its layers take equal parts of the
time that the cost model gives them together; layer i begins when layer i - 1 has ended and layer i of every load has
arrived. LM head and overheads follow the last layer, so that no load hides behind them. Only the first step of a decode
stretch can wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Batch, ModelShape, StepResult
from .cost import EVEN, CostModel, Extremes
from .cost_tables import Shares, TableCosts
from .hardware import Hardware
from .links import SimulatedLinks
from .simulated_narrowing import SimulatedNarrowing
from .tables.operators import OperatorTables
from .transfers import Transfer

MAX_STEPS = 1 << 20


@dataclass(frozen=True, slots=True)
class SimulatedBackend:
    """The knobs of ``backend=simulated``.

    Attributes
    ----------
    max_steps: the longest decode stretch that is taken as one step.
    decoupled: as on the real backend, where it says how keys are cached; no simulated figure depends on it.
    tables: a folder of measured operator times; None: the hardware file's figures alone.
    """

    max_steps: int = MAX_STEPS
    decoupled: bool = False
    tables: str | None = None

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps!r} must be >= 1")
        if self.tables is not None and not Path(self.tables).expanduser().is_dir():
            raise ValueError(f"tables={self.tables!r}: there is no such folder")


class SimulatedExecutor:
    """Implements :class:`~.contract.Executor` on a virtual clock: no tensors, all tokens are -1, nothing is random.

    ``links`` carry what batches wait for; without them a batch may name only transfers that have ended. ``tables``:
    times that were measured, of this model on this hardware. ``narrowing``: what token-level policies leave.

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
        tables: OperatorTables | None = None,
        narrowing: SimulatedNarrowing | None = None,
    ) -> None:
        if not hardware.free_bytes(shape.weight_bytes):
            raise ValueError(
                f"model {shape.name!r} needs {shape.weight_bytes / 1e9:.1f} GB for its weights;"
                f" hardware {hardware.name!r} holds {hardware.devices} x {hardware.memory_bytes / 1e9:.1f} GB,"
                f" of which it may use {hardware.memory_utilization:.0%}"
            )
        self.max_steps = SimulatedBackend(max_steps).max_steps
        self.shape, self.hardware = shape, hardware
        self._needed = np.array(shape.kv_layers or range(shape.num_layers))
        self._shares = None if tables is None else Shares()
        self._costs = CostModel(shape, hardware, page_size)
        if tables is not None:
            self._costs = TableCosts(shape, hardware, page_size, tables)
        self.sums_decodes = not self._costs.uneven
        self._links = links
        self._narrowing = narrowing
        self._asked: tuple[Batch | None, list[float]] = None, []  # whose steps were looked at last, and their times

    @property
    def costs(self) -> CostModel:
        """The cost model, which is also what policies see."""
        return self._costs

    def times_from(self) -> dict[str, Any] | None:
        """Whose tables the times so far came from, and which share of them; None without tables."""
        if self._shares is None or not isinstance(self._costs, TableCosts):
            return None
        return {"tables": self._costs.tables.source, **self._shares.fractions()}

    def run(self, batch: Batch) -> StepResult:
        """The time of ``batch``, what it waited included, and no tokens; a stretch in closed form.

        Runs the clock of the links on to the last end of the batch's transfers.
        """
        if _continues(batch):
            return self._run_prompts(batch)
        result = self._run_once(batch)
        if self._narrowing is not None:
            result.duration_s += self._narrowing.watch_s(batch.segments, self._costs)
            result.slots = self._narrowing.slots(batch.segments)
        return result

    def forget(self, context: int) -> None:
        """See :class:`~.contract.Executor`."""
        if self._narrowing is not None:
            self._narrowing.forget(context)

    def _run_once(self, batch: Batch) -> StepResult:
        sampled, compute_s = self._compute_s(batch, batch.steps)
        if self._shares is not None:
            self._count(batch, sampled)
        if not batch.waits and not batch.loads:
            return StepResult([-1] * sampled, compute_s)
        stall_s = self._stall_s(batch, compute_s if batch.steps == 1 else self._compute_s(batch, 1)[1])
        return StepResult([-1] * sampled, stall_s + compute_s, stall_s=stall_s)

    def duration_until(self, batch: Batch, limit_s: float) -> int:
        """See :class:`~.contract.Executor`; agrees with :meth:`run` to the last bit. O(segments + log steps)."""
        if batch.steps == 1:
            return 1
        if _continues(batch):
            steps_s, end_s = list[float](), 0.0
            for step in _prompt_steps(batch):
                steps_s.append(self._costs.mixed_s(*step))
                end_s += steps_s[-1]
                if end_s >= limit_s:
                    break
            self._asked = batch, steps_s
            return len(steps_s)
        waits = batch.waits or batch.loads
        stall_s = self._stall_s(batch, self._compute_s(batch, 1)[1]) if waits else 0.0
        sequences = len(batch.segments) + batch.decodes
        keys, extremes = _decode_keys(batch), self._extremes(batch)
        return self._costs.decode_steps_until(sequences, keys, batch.steps, limit_s, stall_s, extremes)

    def _run_prompts(self, batch: Batch) -> StepResult:
        if batch.waits or batch.loads:
            raise ValueError(f"a stretch of steps={batch.steps} with parts of prompts waits for nothing")
        if self._shares is not None and isinstance(self._costs, TableCosts):
            for step in _prompt_steps(batch):
                self._costs.count_mixed(self._shares, *step)
        asked, steps_s = self._asked
        if asked is not batch or len(steps_s) != batch.steps:
            steps_s = [self._costs.mixed_s(*step) for step in _prompt_steps(batch)]
        return StepResult([], sum(steps_s), steps_s=steps_s)

    def close(self) -> None:
        """Nothing is held."""

    def _compute_s(self, batch: Batch, steps: int) -> tuple[int, float]:
        """Sampled tokens of a step that have a segment, and the time of the batch's first ``steps`` steps if nothing
        waits."""
        segments, costs, decodes = batch.segments, self._costs, batch.decodes
        if not segments:
            return 0, costs.decode_s(decodes, batch.decode_keys, steps)
        lengths = [segment.length for segment in segments]
        sampled = sum([segment.sample for segment in segments])
        if sampled == len(segments) == sum(lengths):  # all decode
            return sampled, costs.decode_s(sampled + decodes, _decode_keys(batch), steps, self._extremes(batch))
        if batch.steps > 1:
            raise ValueError(f"a batch of steps={batch.steps} must hold sampled segments of length 1 only")
        ends = [segment.start + segment.length for segment in segments]
        return sampled, costs.mixed_s(lengths, ends, sampled, decodes, batch.decode_keys)

    def _extremes(self, batch: Batch) -> Extremes:
        """Fewest and most keys that a query of a decode batch sees, where the costs ask for them."""
        if not self._costs.uneven:
            return EVEN
        starts = [segment.start for segment in batch.segments]
        return min(starts) + 1, max(starts) + 1

    def _count(self, batch: Batch, sampled: int) -> None:
        """Note where the time of ``batch`` came from."""
        assert self._shares is not None and isinstance(self._costs, TableCosts)
        segments, decodes = batch.segments, batch.decodes
        lengths = [segment.length for segment in segments]
        if sampled == len(segments) == sum(lengths):
            self._costs.count_decode(self._shares, sampled + decodes, _decode_keys(batch), batch.steps)
        else:
            ends = [segment.start + segment.length for segment in segments]
            self._costs.count_mixed(self._shares, lengths, ends, sampled, decodes, batch.decode_keys)

    def _stall_s(self, batch: Batch, step_s: float) -> float:
        """How much later the batch, whose first step computes for ``step_s``, ends for its waits and loads."""
        self._settle([*batch.waits, *batch.loads], batch.start_s)
        stall_s = max([0.0, *[_end_s(transfer) - batch.start_s for transfer in batch.waits]])
        if not batch.loads:
            return stall_s
        sampled = sum([segment.sample for segment in batch.segments]) + batch.decodes
        layers_s = max(0.0, step_s - self._costs.outside_s(len(batch.segments) + batch.decodes, sampled))
        return max(stall_s, _late_s(batch.loads, batch.start_s, layers_s / self.shape.num_layers, self._needed))

    def _settle(self, transfers: list[Transfer], now_s: float) -> None:
        if self._links is not None:
            self._links.settle(transfers, now_s)
        elif any(not transfer.done for transfer in transfers):
            raise ValueError("a batch waits for transfers, but the executor was given links=None")


def _continues(batch: Batch) -> bool:
    """It is a stretch in which prompts go on."""
    return batch.steps > 1 and bool(batch.segments) and not batch.segments[0].sample


def _prompt_steps(batch: Batch) -> Iterator[tuple[list[int], list[int], int, int, int]]:
    """The arguments of ``mixed_s`` at each step of a stretch in which prompts go on."""
    lengths = [segment.length for segment in batch.segments]
    for step in range(batch.steps):
        ends = [segment.start + (step + 1) * segment.length for segment in batch.segments]
        yield lengths, ends, 0, batch.decodes, batch.decode_keys + step * batch.decodes


def _decode_keys(batch: Batch) -> int:
    """Keys that the first step of a decode batch sees."""
    return batch.decode_keys + sum([segment.start for segment in batch.segments]) + len(batch.segments)


def _end_s(transfer: Transfer) -> float:
    assert transfer.end_s is not None
    return transfer.end_s


def _late_s(loads: Iterable[Transfer], start_s: float, layer_s: float, needed: NDArray[np.int64]) -> float:
    """How much later the last layer ends for waiting at each layer i until its part of every load is there.

    ``needed``: the layer of the model at which each layer of the pages is wanted first.

    Without waiting layer i begins at start + i * layer_s, so the answer is max(0, arrival of layer i - that), over all
    layers and loads. O(loads log loads), and layers for the few loads that can matter: those behind others on one link
    end later in every layer.
    """
    late_s = 0.0
    for load in sorted(loads, key=_end_s, reverse=True):
        first, count = load.move.layers or (0, len(needed))
        first_s = start_s + int(needed[first]) * layer_s
        if _end_s(load) - first_s <= late_s:  # as if all of it were needed at its first layer
            continue
        if load.layers < count or len(load.layer_ends_s) < load.layers:
            late_s = _end_s(load) - first_s
        else:
            later = needed[first : first + load.layers] - needed[first]
            waited_s = np.array(load.layer_ends_s) - first_s - layer_s * later
            late_s = max(late_s, float(waited_s.max()))
    return late_s
