"""Prefix caching over all tiers."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import (
    Costs,
    Loading,
    Prefetch,
    RequestView,
    Residency,
    RestorePlan,
    complete,
    leading,
    nearest,
    register,
)


@register("prefetch", "prefix")
@dataclass
class PrefixCache(Prefetch):
    """vLLM V1's prefix caching (``KVCacheManager`` and ``OffloadingConnector``); vLLM is Kwon et al., "Efficient memory
    management for large language model serving with PagedAttention", SOSP 2023.

    The leading run of full pages is used, at most up to the last page boundary before the last token, which must be
    computed: device pages as they are, host and disk pages after a load. Everything behind the first miss is computed.
    ``loading``: ``before`` is vLLM's (the request waits for its whole load while others run), ``layers`` and
    ``blocking`` are not. Nothing is fetched from disk before a request's turn.

    Deviations: of two requests that would compute the same page at the same time the later one waits and then hits;
    pages that decoding fills are stored when the request ends, not at once; equal pages are merged; free pages are
    used before cached ones.
    """

    loading: Loading = "before"

    def restore(self, request: RequestView, residency: Residency, costs: Costs) -> RestorePlan:
        known, page = request.known_tokens, residency.page_size
        usable = min(residency.tokens, known - 1) // page * page
        return complete(leading(nearest(residency, usable)), known, self.loading)
