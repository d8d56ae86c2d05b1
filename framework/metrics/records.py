"""Rows that a run leaves. Columns are named as in ``requests.parquet``, ``steps.parquet``, ``transfers.parquet``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .token_times import TokenTimes


@dataclass(slots=True)
class RequestRecord:
    """One request. Times in seconds of the run's clock; token counts of the first admission, except ``preempted``.

    ``token_times`` are (time, tokens) pairs: at ``time`` so many output tokens became available one after another at
    equal distances since the previous pair (the first pair is the first token alone).
    """

    request: int
    conversation: int
    turn: int
    arrival_s: float
    prompt_tokens: int
    history_tokens: int
    reusable_tokens: int
    output_tokens: int
    scheduled_s: float = -1.0
    first_token_s: float = -1.0
    completion_s: float = -1.0
    reused_device: int = 0
    reused_host: int = 0
    reused_disk: int = 0
    reused_remote: int = 0
    recomputed: int = 0
    dropped: int = 0
    preempted: int = 0
    load_stall_s: float = 0.0
    suspensions: int = 0
    reusable_pages: int = 0
    reused_pages: int = 0
    status: str = "ok"
    warmup: bool = False
    output_ids: list[int] = field(default_factory=list)
    token_times: TokenTimes = field(default_factory=TokenTimes)


@dataclass(slots=True)
class StepRecord:
    """One iteration, or a stretch of ``n_steps`` equal ones.

    ``prefill_tokens``: all tokens computed for prompts and history; ``recompute_tokens``: how many of them had been
    computed before. ``stall_s``: part of ``duration_s`` in which the device waited for transfers; ``overhead_s``: time
    outside the model's forward pass. ``waiting``: requests in the queue after admission. ``device_evicted`` and so on:
    pages that a policy chose to evict from the tier since the run began.
    """

    start_s: float
    duration_s: float
    n_steps: int
    prefill_tokens: int
    decode_tokens: int
    recompute_tokens: int
    running: int
    waiting: int
    device_pages: int
    host_pages: int = 0
    disk_pages: int = 0
    stall_s: float = 0.0
    overhead_s: float = 0.0
    device_evicted: int = 0
    host_evicted: int = 0
    disk_evicted: int = 0


@dataclass(frozen=True, slots=True)
class TransferRecord:
    """One copy over a link such as ``host->device``.

    For the timeline, in no table: ``layer_ends_s``: when each layer arrived, as far as it is known; ``first_layer``:
    the number of the first one.
    """

    start_s: float
    end_s: float
    link: str
    pages: int
    layers: int
    bytes: int
    reason: str
    request: int = -1
    first_layer: int = 0
    layer_ends_s: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Narrowed:
    """``freed_tokens``, ``freed_pages``: slots, and device pages, that contexts no longer need because tokens left them
    or are stored packed; ``begun_anew``: contexts that were computed again because a page of them was lost."""

    freed_tokens: int
    freed_pages: int
    begun_anew: int


@dataclass(slots=True)
class RunTotals:
    """What no row tells, filled by the engine at the end of the whole run, warm-up included.

    ``evicted_pages`` by tier name (``device``, ``host``, ``disk``); ``peak_pages``: most device pages in use at once;
    ``host_bytes``, ``disk_bytes``: capacity of these tiers, for the cost. ``adopted_pages``: pages that an earlier run
    left on disk and this one found. ``faults``: how often what went wrong with a
    tier, by kind; none of them changed an answer. ``narrowed``: what token-level policies did, None without any.
    ``page_bytes``: of a device page, all layers together; 0 if nobody says.
    """

    evicted_pages: dict[str, int] = field(default_factory=dict)
    peak_pages: int | None = None
    host_bytes: int = 0
    disk_bytes: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    adopted_pages: int = 0
    narrowed: Narrowed | None = None
    page_bytes: int = 0


class Recorder(Protocol):
    """Receives what happened, in order. Must not fail the run."""

    def request(self, record: RequestRecord) -> None:
        """A request finished or failed; the record is final."""
        ...

    def step(self, record: StepRecord) -> None: ...

    def transfer(self, record: TransferRecord) -> None: ...
