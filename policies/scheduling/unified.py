"""Pensieve's scheduler: whole prompts and decodes in one batch."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import (
    Plan,
    SchedulerView,
    Scheduling,
    admit_whole_prompts,
    register,
    require_at_least,
    require_share,
    serve_all,
)


@register("scheduling", "unified")
@dataclass
class Unified(Scheduling):
    """Every running request decodes one token and waiting requests join with their whole prompts, in the same batch.

    Yu et al., "Stateful LLM serving with Pensieve", EuroSys 2025, sections 4.2 and 4.3.2: FCFS, no chunking, and
    ``decode_reserve`` (10 %) of the device's pages, free or evictable, is kept for running requests.

    Our choices where the paper is silent: when decoding runs out of pages nevertheless, the latest arrival is suspended
    first; ``max_batched_tokens`` bounds the prompts that join one iteration (a longer one joins alone) and
    ``max_running`` the batch; an idle engine ignores the reserve.
    """

    max_batched_tokens: int = 16384
    max_running: int = 256
    decode_reserve: float = 0.1

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_batched_tokens", "max_running")
        require_share(self, "decode_reserve")

    def plan(self, view: SchedulerView) -> Plan:
        plan = Plan(stable=True)
        _, room = serve_all(view, plan, by_arrival=True)
        if not plan.suspended:
            reserve = int(self.decode_reserve * view.device_pages)
            admit_whole_prompts(
                view, plan, room, budget=self.max_batched_tokens, max_running=self.max_running, reserve=reserve
            )
        return plan
