"""Pensieve's scheduler: whole prompts and decodes in one batch."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import (
    Plan,
    SchedulerView,
    Scheduling,
    Share,
    register,
    require_at_least,
    require_share,
    serve_running,
)


@register("scheduling", "unified")
@dataclass
class Unified(Scheduling):
    """Every running request decodes one token and waiting requests join with their whole prompts, in the same batch.

    Yu et al., "Stateful LLM serving with Pensieve", EuroSys 2025, sections 4.2 and 4.3.2: FCFS, no chunking,
    ``decode_reserve`` (10 %) of the device's pages is kept for running requests, and when decoding runs out of pages
    nevertheless, requests are suspended, the latest arrival first. The paper gives no limit for a batch;
    ``max_batched_tokens`` bounds the prompts that join one iteration (a longer one joins alone) and ``max_running``
    the batch. An idle engine ignores the reserve.
    """

    max_batched_tokens: int = 16384
    max_running: int = 256
    decode_reserve: float = 0.1

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_batched_tokens", "max_running")
        require_share(self, "decode_reserve")

    def plan(self, view: SchedulerView) -> Plan:
        plan = Plan(stable=True)
        _, room = serve_running(view, plan, sorted(view.running, key=lambda request: request.order))
        if not plan.suspended:
            self._admit(view, plan, room)
        return plan

    def _admit(self, view: SchedulerView, plan: Plan, room: int) -> None:
        slots = self.max_running - len(view.running)
        budget = self.max_batched_tokens
        reserve = int(self.decode_reserve * view.device_pages)
        for request in view.waiting:
            if not slots:
                return
            offer = view.offer(request)
            if offer.blocked:
                continue
            tokens, pages = offer.compute_tokens, offer.pages + offer.pinned_pages
            if pages > room - (reserve if plan.shares else 0) or (tokens > budget < self.max_batched_tokens):
                return
            plan.shares.append(Share(request, tokens, offer))
            room -= pages
            budget -= tokens
            slots -= 1
