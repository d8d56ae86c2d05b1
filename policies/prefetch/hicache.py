"""SGLang's HiCache: prefix caching over three levels with a bounded wait for the third."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from ...framework.policy import (
    Costs,
    Loading,
    Prefetch,
    QueueView,
    RequestView,
    Residency,
    RestorePlan,
    Span,
    Tier,
    TierView,
    complete,
    leading,
    nearest,
    register,
    require_at_least,
)


@register("prefetch", "hicache")
@dataclass
class HiCache(Prefetch):
    """SGLang's hierarchical cache (docs ``hicache_design``; ``mem_cache/hiradix_cache.py``).

    The leading run of full pages is reused: device pages (L1) as they are, host pages (L2) loaded layer by layer
    unless they are fewer than ``load_back_tokens`` tokens. What L3, here the disk, holds is fetched to the host while
    a request waits, if it is more than ``prefetch_threshold`` tokens. When the request's turn comes, ``stop`` says how
    long it waits for that: ``best_effort`` not at all, ``wait_complete`` to the end, ``timeout`` at most
    ``timeout_base_s`` + ``timeout_per_ki_token_s`` tokens / 1024 seconds. What has not arrived then is computed;
    nothing is loaded from disk otherwise. Defaults are SGLang's.

    Deviations: L3 needs a host tier, through which all of it comes; SGLang starts a fetch when a request enters the
    queue, here when it is among the first ``max_window``.
    """

    loading: Loading = "layers"
    load_back_tokens: int = 10
    prefetch_threshold: int = 256
    stop: Literal["best_effort", "wait_complete", "timeout"] = "timeout"
    timeout_base_s: float = 1.0
    timeout_per_ki_token_s: float = 0.25
    max_window: int = 256

    def __post_init__(self) -> None:
        require_at_least(self, 0, "load_back_tokens", "prefetch_threshold", "timeout_base_s", "timeout_per_ki_token_s")
        require_at_least(self, 1, "max_window")

    def restore(self, request: RequestView, residency: Residency, costs: Costs) -> RestorePlan:
        known, page = request.known_tokens, residency.page_size
        near = tuple(Span(s.start, s.stop, tuple(t for t in s.tiers if t <= Tier.HOST)) for s in residency.spans)
        usable = min(residency.tokens, known - 1) // page * page
        ranges = leading(nearest(Residency(near, page), usable))
        loads = sum(part.stop - part.start for part in ranges if part.action == "load")
        if loads < self.load_back_tokens:
            ranges = list(takewhile(lambda part: part.action == "use", ranges))
        return complete(ranges, known, self.loading)

    def ahead(self, queue: QueueView, host: TierView) -> Iterator[RequestView]:
        for request in queue.head(self.max_window):
            if self.fetches(request.known_tokens):
                yield request

    def fetches(self, tokens: int) -> bool:
        return tokens > self.prefetch_threshold

    def patience_s(self, tokens: int) -> float:
        if self.stop == "timeout":
            return self.timeout_base_s + self.timeout_per_ki_token_s * tokens / 1024
        return 0.0 if self.stop == "best_effort" else math.inf
