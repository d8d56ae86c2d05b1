"""From checked parts to what computes: the executor of a backend, its clock, and how many device pages it has."""

from __future__ import annotations

from dataclasses import dataclass

from .composition import Parts, TorchBackend
from .execution.capacity import device_pages, free_bytes
from .execution.clocks import SkipIdleClock, VirtualClock, WallClock
from .execution.contract import Clock, Executor, ModelShape
from .execution.simulated import SimulatedBackend, SimulatedExecutor
from .execution.threads import spin_briefly
from .workloads.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Backend:
    """``max_tokens``: the longest context that the model takes, None: any length. ``tokenizer``: the model's own."""

    executor: Executor
    clock: Clock
    shape: ModelShape
    num_pages: int
    max_tokens: int | None = None
    tokenizer: Tokenizer | None = None


def open_backend(parts: Parts) -> Backend:
    """Load the model, or the cost model.

    Raises
    ------
    ValueError
        If the model cannot be loaded, or model and pages do not fit.
    """
    if isinstance(parts.backend, TorchBackend):
        return _torch(parts, parts.backend)
    return _simulated(parts, parts.backend)


def _simulated(parts: Parts, knobs: SimulatedBackend) -> Backend:
    shape, memory = parts.shape, parts.memory
    assert shape is not None
    executor = SimulatedExecutor(shape, parts.hardware, memory.page_size, max_steps=knobs.max_steps)
    free = parts.hardware.free_bytes(shape.weight_bytes)
    pages = device_pages(memory.device_tokens, memory.page_size, shape.kv_bytes_per_token, free)
    return Backend(executor, VirtualClock(), shape, pages)


def _torch(parts: Parts, knobs: TorchBackend) -> Backend:
    spin_briefly()
    from .execution.models import load_model  # torch and transformers are loaded for real runs only
    from .execution.shapes import DTYPE_BYTES
    from .execution.torch_executor import TorchExecutor

    memory = parts.memory
    model = load_model(parts.model_knobs, knobs.device, parts.seed)
    dtype_bytes = DTYPE_BYTES[knobs.dtype] if knobs.dtype else model.shape.dtype_bytes
    kv_bytes = model.shape.kv_bytes_per_token * dtype_bytes // model.shape.dtype_bytes
    pages = device_pages(memory.device_tokens, memory.page_size, kv_bytes, free_bytes(knobs.device))
    executor = TorchExecutor(
        *(model, pages, memory.page_size),
        device=knobs.device,
        dtype=knobs.dtype,
        threads=knobs.threads,
        decoupled=knobs.decoupled,
    )
    executor.warm_up()
    clock = WallClock() if knobs.clock == "wall" else SkipIdleClock()
    return Backend(executor, clock, executor.shape, pages, executor.shape.max_positions, model.tokenizer)
