"""Belady's MIN: the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...framework.policy import RunView, ScoredEviction, register


@register("eviction", "belady")
@dataclass
class Belady(ScoredEviction):
    """The run whose next use lies furthest in the future leaves first (L. A. Belady, IBM Systems Journal 5(2), 1966).

    An oracle: it knows when each conversation comes back. Deviations: a run that several conversations share counts
    as needed at once, and pages are always stored (MIN may bypass the cache).
    """

    oracle: ClassVar[bool] = True

    def score(self, run: RunView) -> float:
        assert self.future is not None
        return -self.future.next_use(run)
