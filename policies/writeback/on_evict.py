"""Copied down when it must leave."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import RunView, Tier, Writeback, register


@register("writeback", "on_evict")
@dataclass
class OnEvict(Writeback):
    """What must leave a tier goes to the next one down; nothing is copied before.

    SGLang's ``write_back``, and Pensieve without ahead-of-time swap-out (section 4.3.2): whoever gets a slot waits
    until its old content has left. ``yields``: copies down wait while loads run on the same link; off, for a copy that
    somebody waits for had better not.
    """

    yields: bool = False

    def on_evict(self, run: RunView, tier: Tier) -> bool:
        return True
