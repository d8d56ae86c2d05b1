"""Nothing is copied down."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import RunView, Tier, Writeback, register


@register("writeback", "none")
@dataclass
class NoWriteback(Writeback):
    """What leaves a tier is dropped."""

    def on_evict(self, run: RunView, tier: Tier) -> bool:
        return False
