"""What the engine asks of a backend: batches of query segments in, tokens and a duration out.

Both backends fill these contracts; the engine cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..policy import Costs, Stage
from ..workloads.tokens import TokenLog
from .transfers import Transfer


@dataclass(frozen=True, slots=True)
class Narrowing:
    """After the batch a token-level policy decides what stays of the context that a segment belongs to.

    ``context``: the number of the context, a new one whenever it is begun anew. ``conversation``: whose it is.
    ``stage``: see ``CacheView``. ``tokens``: of the context with this segment, kept or not. The slots ``0 .. start +
    length`` under the segment's table are the context's own: the executor may move K/V between them.
    """

    context: int
    conversation: int
    stage: Stage
    tokens: int


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
    narrowing: None for contexts that are cached whole. Else ``start`` is a place in the cache, and the context's
        newest ``length`` tokens are computed: their true positions end at ``narrowing.tokens``.
    """

    request: int
    log: TokenLog
    start: int
    length: int
    table: NDArray[np.int32]
    write: bool = True
    sample: bool = False
    forced: int = -1
    narrowing: Narrowing | None = None

    @property
    def position(self) -> int:
        """True position of the first token."""
        return self.start if self.narrowing is None else self.narrowing.tokens - self.length


@dataclass(slots=True)
class Batch:
    """One iteration, or ``steps`` > 1 that follow one another: every segment is then one sampled decode token, or part
    of a prompt that goes on, as many tokens at every step.

    In such a stretch the table of each segment already covers the positions of all ``steps``.

    Attributes
    ----------
    waits: transfers that must have ended before the first layer writes (they still read pages that it overwrites, or
        fill pages that it reads).
    loads: transfers that must have brought layer i of the pages before attention reads it, or all at once where a
        transfer has fewer parts.
    start_s: when the iteration begins, on the run's clock.
    decodes, decode_keys: sampled decode tokens that have no segment of their own, and how many keys they see in the
        first step, all together; only for executors with ``sums_decodes``.
    """

    segments: list[Segment] = field(default_factory=list)
    steps: int = 1
    waits: list[Transfer] = field(default_factory=list)
    loads: list[Transfer] = field(default_factory=list)
    start_s: float = 0.0
    decodes: int = 0
    decode_keys: int = 0


@dataclass(slots=True)
class StepResult:
    """``tokens[i]``: the model's own choice after the i-th sampling segment, in batch order (-1, or left out at the
    end, where there is no model).

    ``duration_s``: what the iteration took, measured or simulated, all ``steps`` together. ``forward_s``: the part of
    it inside the model's forward pass, where it is measured. ``stall_s``: the part in which it waited for transfers.
    ``steps_s``: what each step took, where they differ by more than what decode tokens add. ``slots``: how many slots
    each context takes now, by its number, where a token-level policy let go of some.
    """

    tokens: list[int]
    duration_s: float
    forward_s: float | None = None
    stall_s: float = 0.0
    steps_s: list[float] | None = None
    slots: Mapping[int, int] = field(default_factory=dict)


class Executor(Protocol):
    """Computes batches. ``max_steps``: the longest stretch it takes in one call (1 for a real model).

    ``sums_decodes``: it needs to know of decode tokens only how many they are and how many keys they see.
    """

    max_steps: int
    sums_decodes: bool

    @property
    def costs(self) -> Costs:
        """The costs that policies see."""
        ...

    def run(self, batch: Batch) -> StepResult:
        """Compute ``batch``. Each layer writes all K/V of the batch before any of its attention reads."""
        ...

    def forget(self, context: int) -> None:
        """The narrowed context of that number is no more; an unknown one is ignored."""
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
    ``kv_dtype``: bytes of a cached number where that is not ``dtype_bytes``, else 0. ``kv_layers``: the layers that
    store K/V of their own, ascending, where others use theirs; (): all store.
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
    kv_dtype: int = 0
    kv_layers: tuple[int, ...] = ()

    @property
    def kv_dtype_bytes(self) -> int:
        """Bytes of one number in the KV cache."""
        return self.kv_dtype or self.dtype_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Native K and V of one token over all layers that store them."""
        return 2 * self.stored_layers * self.num_kv_heads * self.head_dim * self.kv_dtype_bytes

    @property
    def stored_layers(self) -> int:
        """How many layers store K/V."""
        return len(self.kv_layers) or self.num_layers

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.num_params * self.dtype_bytes
