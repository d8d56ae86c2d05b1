"""CachedAttention's layer-wise pre-loading and scheduler-aware fetching."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from ...framework.policy import (
    Costs,
    Loading,
    Prefetch,
    QueueView,
    RequestView,
    Residency,
    RestorePlan,
    TierView,
    complete,
    leading,
    nearest,
    register,
    require_at_least,
)


@register("prefetch", "layerwise")
@dataclass
class LayerwisePreloading(Prefetch):
    """Gao et al., "Cost-efficient LLM serving ... with CachedAttention", USENIX ATC 2024, sections 3.2.1 and 3.3.1.

    A session's history is loaded layer by layer while the layers before compute. A read buffer lets the first layers
    load before the iteration begins. The paper sizes it by S_buf = B (T_load L_hist - T_pref L_new): what loading takes
    longer than computing. In layers that is ceil(layers (load_s - compute_s) / load_s), which ``buffer_layers`` null
    means; a number fixes it (the paper's PL-B0 .. PL-B15). ``loading``: ``layers``; ``blocking`` is its NO-PL.

    Scheduler-aware fetching: the disk parts of the first L_pw = C_mem / S_kv waiting sessions are fetched to the host,
    head first. C_mem is ``host_share`` of the host tier, S_kv the mean size of the sessions inside the window itself,
    so that the window is as long as the sessions in it fit. ``fetches_ahead`` false is what the paper's LRU and FIFO
    baselines do.

    Deviations: the paper gives no share of the memory that fetching may fill; the rest holds running sessions and what
    is being saved, which would push out what was fetched last. The paper does not define B, nor the buffer's place:
    here it is the device pages of the request itself; a session that lost pages (the paper's never do) is used as far
    as its leading run reaches; a session's size is that of its context with the new prompt; the window is at most
    ``max_window`` requests long.
    """

    loading: Loading = "layers"
    buffer_layers: int | None = None
    fetches_ahead: bool = True
    host_share: float = 0.5
    max_window: int = 256

    reuses: ClassVar[Literal["nothing", "pages", "tokens"]] = "tokens"

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_window")
        if not 0 < self.host_share <= 1:
            raise ValueError(f"host_share is {self.host_share}; it must be above 0 and at most 1")
        if self.buffer_layers is not None:
            require_at_least(self, 0, "buffer_layers")

    def restore(self, request: RequestView, residency: Residency, costs: Costs) -> RestorePlan:
        known = request.known_tokens
        return complete(leading(nearest(residency, known - 1)), known, self.loading)

    def early_layers(self, layers: int, load_s: float, compute_s: float) -> int:
        if self.loading != "layers":
            return 0
        if self.buffer_layers is not None:
            return min(self.buffer_layers, layers)
        return math.ceil(layers * (1 - compute_s / load_s)) if load_s > compute_s else 0

    def ahead(self, queue: QueueView, host: TierView) -> Iterator[RequestView]:
        room = int(self.host_share * host.capacity) if self.fetches_ahead else 0
        for request in queue.head(self.max_window):
            room -= -(-request.known_tokens // host.page_size)
            if room < 0:
                return
            yield request
