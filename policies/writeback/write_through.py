"""Copied down as soon as it is computed."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import RunView, Tier, Writeback, register, require_at_least


@register("writeback", "write_through")
@dataclass
class WriteThrough(Writeback):
    """Full pages are copied from the device to the next tier once ``min_uses`` requests have used them.

    1 copies every page when it is computed: vLLM's ``OffloadingConnector`` and SGLang's ``write_through``. 2 or more
    copies what came back: SGLang's ``write_through_selective`` (hit count 2), vLLM's ``store_threshold``. The copy
    below stays when the device's leaves, so that evicting from the device costs nothing; what was not copied by then
    is dropped, as vLLM does. From the host, pages go to the disk when they must leave.

    Deviations: the request that computes a page counts as a use (SGLang's counter does too); the partial page at the
    end of a conversation is copied as well where the system keeps it; HiCache copies to L3 at once, here when L2 is
    full. ``yields``: copies down wait while loads run on the same link; neither system is known to do so.
    """

    min_uses: int = 1
    yields: bool = False

    def __post_init__(self) -> None:
        require_at_least(self, 1, "min_uses")

    def on_evict(self, run: RunView, tier: Tier) -> bool:
        return tier is not Tier.DEVICE

    def eager(self, run: RunView) -> bool:
        return run.uses >= self.min_uses
