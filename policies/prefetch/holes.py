"""Use all that is on the device, wherever it lies, and recompute the holes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ...framework.policy import Action, Costs, Prefetch, Range, RequestView, Residency, RestorePlan, Tier, register


@register("prefetch", "holes")
@dataclass
class RecomputeHoles(Prefetch):
    """Pensieve's restoration with the device tier alone (Yu et al., EuroSys 2025, sections 4.3.3 and 4.3.4).

    Resident tokens are used even behind a hole, the last page only as far as it is filled; dropped ranges are
    computed again in the same batch as the new prompt, as a second query segment over one page table.
    """

    reuses: ClassVar[Literal["nothing", "pages", "tokens"]] = "tokens"
    holes: ClassVar[bool] = True

    def restore(self, request: RequestView, residency: Residency, costs: Costs) -> RestorePlan:
        ranges: list[Range] = []
        last = request.known_tokens - 1
        for span in residency.spans:
            stop = min(span.stop, last)
            if stop > span.start:
                action: Action = "use" if Tier.DEVICE in span.tiers else "recompute"
                ranges.append(Range(span.start, stop, action))
        done = ranges[-1].stop if ranges else 0
        return RestorePlan((*ranges, Range(done, last + 1, "recompute")))
