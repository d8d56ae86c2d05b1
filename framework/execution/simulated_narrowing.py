"""What token-level policies leave of a context where nothing is computed: sizes only."""

from __future__ import annotations

from collections.abc import Iterable

from ..footprint import Footprint, Held
from .contract import Segment
from .cost import CostModel


class SimulatedNarrowing:
    """Remembers what each narrowed context holds, by ``footprint``."""

    def __init__(self, footprint: Footprint) -> None:
        self._footprint = footprint
        self._cached: dict[int, float] = {}

    def slots(self, segments: Iterable[Segment]) -> dict[int, int]:
        """The slots that each narrowed context of ``segments`` takes after them, where those have become fewer."""
        fewer: dict[int, int] = {}
        for segment in segments:
            if (narrowing := segment.narrowing) is None:
                continue
            cached = self._cached.get(narrowing.context, 0.0) + segment.length
            before = Held(narrowing.tokens, cached, segment.start + segment.length)
            after = self._footprint.after(before, narrowing.stage)
            if after is not before:
                fewer[narrowing.context] = after.slots
            self._cached[narrowing.context] = after.cached
        return fewer

    def watch_s(self, segments: Iterable[Segment], costs: CostModel) -> float:
        """What looking at the attention of ``segments`` takes, where the policy asks for it."""
        truncation = self._footprint.truncation
        if truncation is None or not (needs := truncation.needs).scores:
            return 0.0
        total_s = 0.0
        for segment in segments:
            if segment.narrowing is None or not (needs.decoding or segment.narrowing.stage != "decode"):
                continue
            whole = needs.column_sums or needs.log_sum_exp
            queries = segment.length if whole else min(segment.length, needs.rows)
            total_s += costs.watch_s(queries, segment.start + segment.length)
        return total_s

    def forget(self, context: int) -> None:
        """The context of that number is no more."""
        self._cached.pop(context, None)
