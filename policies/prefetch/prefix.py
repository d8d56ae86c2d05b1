"""Automatic prefix caching."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import Costs, Prefetch, Range, RequestView, Residency, RestorePlan, Tier, register


@register("prefetch", "prefix")
@dataclass
class PrefixCache(Prefetch):
    """vLLM V1's automatic prefix caching (Kwon et al., SOSP 2023; vLLM's ``KVCacheManager``).

    The leading run of full pages on the device is used, at most up to the last page boundary before the last token,
    which must be computed; everything behind the first miss is computed.

    Deviations: of two requests that would compute the same page at the same time the later one waits and then hits;
    pages that decoding fills are stored when the request ends, not at once; equal pages are merged; free pages are
    used before cached ones.
    """

    def restore(self, request: RequestView, residency: Residency, costs: Costs) -> RestorePlan:
        known, page = request.known_tokens, residency.page_size
        usable = min(residency.leading(Tier.DEVICE), known - 1) // page * page
        ranges = (Range(0, usable, "use"), Range(usable, known, "recompute"))
        return RestorePlan(ranges if usable else ranges[1:])
