"""Nothing comes back: stateless serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ...framework.policy import Costs, Prefetch, Range, RequestView, Residency, RestorePlan, register


@register("prefetch", "none")
@dataclass
class NoReuse(Prefetch):
    """Every request computes its whole context; pages are freed when it ends (vLLM without prefix caching)."""

    reuses: ClassVar[Literal["nothing", "pages", "tokens"]] = "nothing"

    def restore(self, request: RequestView, residency: Residency, costs: Costs) -> RestorePlan:
        return RestorePlan((Range(0, request.known_tokens, "recompute"),))
