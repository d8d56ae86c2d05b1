"""First in, first out."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import RunView, ScoredEviction, register


@register("eviction", "fifo")
@dataclass
class FIFO(ScoredEviction):
    """The run that was stored first leaves first, whatever was used since.

    A run that grows (a prompt computed in chunks) keeps the time of its first page. Where only leading runs are
    usable, a run waits until the runs behind it have left.
    """

    def score(self, run: RunView) -> float:
        return run.inserted
