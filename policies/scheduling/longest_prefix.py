"""SGLang's cache-aware scheduler: of the waiting requests that with the longest cached context first."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from ...framework.policy import (
    Offer,
    Plan,
    SchedulerView,
    Scheduling,
    Share,
    register,
    require_at_least,
    serve_all,
)


@register("scheduling", "longest_prefix")
@dataclass
class LongestPrefix(Scheduling):
    """Running requests first, then of the first ``window`` waiting ones that with the longest reusable context first.

    SGLang's ``lpm`` (Zheng et al., "SGLang", NeurIPS 2024, section 3; ``managers/schedule_policy.py``), with chunked
    prefill under one token budget; ties go in the order of the queue, and the first request that does not fit ends
    admission. Defaults are SGLang's: 8,192 tokens a chunk, 128 requests that are compared.

    Deviations: with more than 128 waiting SGLang serves first come, first served, here the first ``window`` are still
    compared; a request whose pages another one computes is passed over, where SGLang puts off requests that share a
    prefix with one before them; suspended requests are not put behind. A request with a short prefix can starve while
    longer ones keep entering the window: measure the tail.
    """

    max_batched_tokens: int = 8192
    max_running: int = 256
    window: int = 128

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_batched_tokens", "max_running", "window")

    @property
    def chunk(self) -> int | None:
        return self.max_batched_tokens

    def plan(self, view: SchedulerView) -> Plan:
        plan = Plan(stable=True)
        budget, room = serve_all(view, plan, self.max_batched_tokens)
        slots = self.max_running - len(view.running) - view.loading
        if budget and slots and room and not plan.suspended:
            budget = self._admit(view, plan, budget, room, slots)
        plan.repeats = not budget
        return plan

    def _admit(self, view: SchedulerView, plan: Plan, budget: int, room: int, slots: int) -> int:
        """Returns what is left of ``budget``."""
        for offer in self._offers(view):
            tokens = 0 if offer.deferred else min(offer.compute_tokens, budget)
            pages = offer.pages_for(tokens) + offer.pinned_pages
            if not (slots and budget) or pages > room:
                return budget
            plan.shares.append(Share(offer.request, tokens, offer))
            room -= pages
            budget -= tokens
            slots -= 1
        return budget

    def _offers(self, view: SchedulerView) -> list[Offer]:
        """What the first waiting requests could reuse, most first."""
        offers = [view.offer(request) for request in islice(view.waiting, self.window)]
        ready = [offer for offer in offers if not offer.blocked]
        return sorted(ready, key=lambda offer: offer.compute_tokens - offer.request.known_tokens)
