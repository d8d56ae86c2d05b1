"""CachedAttention's asynchronous saving: layer by layer while computing, through a write buffer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...framework.policy import RunView, Tier, TierView, Writeback, register, require_at_least, require_share


@register("writeback", "save_layerwise")
@dataclass
class SaveLayerwise(Writeback):
    """Gao et al., "Cost-efficient LLM serving ... with CachedAttention", USENIX ATC 2024, sections 3.2.2 and 3.3.1.

    K/V are saved to the host layer by layer while the next ones are computed, and the device keeps running requests
    only: when a turn ends its pages leave. What has not been written by then waits in a write buffer of
    ``buffer_tokens`` tokens, so that the next iteration need not wait; 0 is the paper's synchronous saving, null has
    no limit. The paper gives no size: the default holds a session of 2K tokens. ``free_share`` of the host are kept
    free by moving sessions to the disk in advance, so that fetches and saves find room (the paper gives no value
    either). ``keeps_device`` true makes the device a cache between turns, which the paper's is not.

    Deviations: pages are saved when they are full, not token by token while decoding; host pages that were copied to
    the disk in advance stay readable until their slot is needed. ``yields``: saving waits while loads run.
    """

    buffer_tokens: int | None = 2048
    free_share: float = 0.1
    keeps_device: bool = False
    yields: bool = False

    def __post_init__(self) -> None:
        require_share(self, "free_share")
        if self.buffer_tokens is not None:
            require_at_least(self, 0, "buffer_tokens")

    def on_evict(self, run: RunView, tier: Tier) -> bool:
        return True

    def eager(self, run: RunView) -> bool:
        return True

    def ahead(self, view: TierView) -> int:
        if view.tier is not Tier.HOST or not view.capacity_below:
            return 0
        return max(0, math.ceil(self.free_share * view.capacity) - view.free_pages - view.spare_pages)
