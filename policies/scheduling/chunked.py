"""vLLM V1's scheduler: running requests first, then waiting ones, prompts in chunks, one token budget."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import Plan, SchedulerView, Scheduling, Share, register, require_at_least, serve_all


@register("scheduling", "chunked")
@dataclass
class Chunked(Scheduling):
    """Running requests first, then waiting ones, under one token budget; prefills are chunked to what is left of it.

    vLLM V1 (``v1/core/sched/scheduler.py``, FCFS): no phases; when pages run out the last admitted request is
    preempted, its pages are released and it is computed again later; nothing is admitted in an iteration that
    preempted; the first waiting request that does not fit ends admission. Defaults are vLLM's for an A100 API server:
    2,048 tokens, 256 sequences. Deviation: a request whose next page is being computed by another is passed over
    until it is there.
    """

    max_batched_tokens: int = 2048
    max_running: int = 256

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_batched_tokens", "max_running")

    @property
    def chunk(self) -> int | None:
        return self.max_batched_tokens

    def plan(self, view: SchedulerView) -> Plan:
        plan = Plan(stable=True)
        budget, room = serve_all(view, plan, self.max_batched_tokens)
        if budget and not plan.suspended:
            budget = self._admit(view, plan, budget, room)
        plan.repeats = not budget
        return plan

    def _admit(self, view: SchedulerView, plan: Plan, budget: int, room: int) -> int:
        """Returns what is left of ``budget``."""
        slots = self.max_running - len(view.running) - view.loading
        for request in view.waiting:
            if not (slots and budget):
                return budget
            offer = view.offer(request)
            if offer.blocked:
                continue
            tokens = 0 if offer.deferred else min(offer.compute_tokens, budget)
            pages = offer.pages_for(tokens) + offer.pinned_pages
            if pages > room:
                return budget
            plan.shares.append(Share(request, tokens, offer))
            room -= pages
            budget -= tokens
            slots -= 1
        return budget
