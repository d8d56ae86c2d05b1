"""What the engine asks of a backend: batches of query segments in, tokens and a duration out.

Both backends fill these contracts; the engine cannot tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..policy import Costs
from ..workloads.tokens import TokenLog
from .transfers import Transfer


@dataclass(slots=True)
class Segment:
    """Queries for the consecutive tokens ``start`` .. ``start + length`` of one context.

    A query at position p sees the keys at positions <= p; every earlier position is resident or in the same batch.

    Attributes
    ----------
    log: the context's tokens; ``log.ids(start, start + length)`` are the ids to feed (real backends only).
    table: device page of each page of the context, int32 [>= pages up to start + length]; not to be modified.
    write: False where the K/V of these positions are resident already and must not be written again.
    sample: the next token is wanted after the last position.
    forced: the token that the workload says comes next (teacher forcing), or -1.
    """

    request: int
    log: TokenLog
    start: int
    length: int
    table: NDArray[np.int32]
    write: bool = True
    sample: bool = False
    forced: int = -1


@dataclass(slots=True)
class Batch:
    """One iteration. ``steps`` > 1 only if every segment is one sampled decode token: run that many decode steps.

    In such a stretch the table of each segment already covers ``start + steps`` positions.

    Attributes
    ----------
    waits: transfers that must have ended before the first layer writes (they still read pages that it overwrites, or
        fill pages that it reads).
    loads: transfers that must have brought layer i before layer i's attention reads; layers of the model, or all at
        once where a transfer has fewer parts.
    start_s: when the iteration begins, on the run's clock.
    """

    segments: list[Segment] = field(default_factory=list)
    steps: int = 1
    waits: list[Transfer] = field(default_factory=list)
    loads: list[Transfer] = field(default_factory=list)
    start_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """``tokens[i]``: the model's own choice after the i-th sampling segment, in batch order (-1 where there is no
    model).

    ``duration_s``: what the iteration took, measured or simulated, all ``steps`` together. ``forward_s``: the part of
    it inside the model's forward pass, where it is measured. ``stall_s``: the part in which it waited for transfers.
    """

    tokens: list[int]
    duration_s: float
    forward_s: float | None = None
    stall_s: float = 0.0


class Executor(Protocol):
    """Computes batches. ``max_steps``: the longest stretch it takes in one call (1 for a real model)."""

    max_steps: int

    @property
    def costs(self) -> Costs:
        """The costs that policies see."""
        ...

    def run(self, batch: Batch) -> StepResult:
        """Compute ``batch``. Each layer writes all K/V of the batch before any of its attention reads."""
        ...

    def duration_until(self, batch: Batch, limit_s: float) -> int:
        """How many steps of the stretch ``batch`` end up to and including the first that ends at or after ``limit_s``,
        at least 1, at most ``batch.steps``."""
        ...

    def close(self) -> None:
        """Free what the executor holds."""
        ...


class Clock(Protocol):
    """Seconds since the run began."""

    def now(self) -> float: ...

    def ends(self, started_s: float, duration_s: float) -> float:
        """When an iteration that began at ``started_s`` and took ``duration_s`` ends: their sum on a virtual clock;
        now on a real one, which has moved by itself."""
        ...

    def wait_until(self, time_s: float) -> None:
        """Nothing runs until ``time_s``: jump (virtual, skip_idle) or sleep (wall)."""
        ...


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The figures of a decoder that memory and cost need.

    ``num_params`` counts every weight; ``embedding_params`` those that are only looked up (not multiplied).
    """

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_params: int
    embedding_params: int
    dtype_bytes: int
    max_positions: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Native K and V of one token over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.num_params * self.dtype_bytes
