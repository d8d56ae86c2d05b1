"""First in, first out: use does not count."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import PageTrace, RequestHits, RunView, ScoredEviction, register
from .replays.lists import fifo_hits
from .replays.queues import fifo_prefix_hits


@register("eviction", "fifo")
@dataclass
class FIFO(ScoredEviction):
    """The run that was stored first leaves first, whatever was used since.

    A run that grows (a prompt computed in chunks) keeps the time of its first page. Where only leading runs are
    usable, a run waits until the runs behind it have left.
    """

    def score(self, run: RunView) -> float:
        return run.inserted

    def replay_blocks(self, trace: PageTrace, capacity: int) -> bytearray:
        return fifo_hits(trace, capacity)

    def replay_prefixes(self, trace: PageTrace, capacity: int) -> RequestHits:
        return fifo_prefix_hits(trace, capacity)
