"""Use all that is stored, wherever it lies, and recompute the holes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ...framework.policy import (
    Costs,
    Loading,
    Prefetch,
    RequestView,
    Residency,
    RestorePlan,
    complete,
    nearest,
    register,
)


@register("prefetch", "holes")
@dataclass
class RecomputeHoles(Prefetch):
    """Yu et al., "Stateful LLM serving with Pensieve", EuroSys 2025, sections 4.3.3 and 4.3.4: its restoration.

    A context lies as [dropped][host][device][new prompt]: device pages are used, host pages loaded layer by layer
    while earlier layers compute, dropped ranges computed again in the same batch as the new prompt, as a second query
    segment over one page table. Nothing weighs loading against recomputing. ``loading``: ``layers`` is the paper's,
    ``blocking`` its ablation.

    Our choices where the paper is silent: any hole is recomputed, not only a leading one; the last page is used only as
    far as it is filled; a host page that holds the very last token is computed, not loaded; disk pages, which the paper
    does not have, are loaded before the request joins a batch.
    """

    loading: Loading = "layers"

    reuses: ClassVar[Literal["nothing", "pages", "tokens"]] = "tokens"
    holes: ClassVar[bool] = True

    def restore(self, request: RequestView, residency: Residency, costs: Costs) -> RestorePlan:
        known = request.known_tokens
        return complete(nearest(residency, known - 1), known, self.loading)
