"""Least recently used, written by a stranger."""

from __future__ import annotations

from dataclasses import dataclass

from kvarena.framework.policy import RunView, ScoredEviction, register


@register("eviction", "sample")
@dataclass
class Sample(ScoredEviction):
    """What was used longest ago leaves first. ``weight`` > 0 multiplies the score, which changes nothing."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight is {self.weight}, expected more than 0")

    def score(self, run: RunView) -> float:
        return self.weight * run.last_use
