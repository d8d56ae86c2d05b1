"""vLLM 0.2's scheduler: prompt-only or decode-only iterations."""

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


@register("scheduling", "prefill_first")
@dataclass
class PrefillFirst(Scheduling):
    """If waiting requests can be admitted the iteration computes their prompts alone, else it decodes.

    vLLM 0.2 (Kwon et al., "Efficient memory management for large language model serving with PagedAttention", SOSP
    2023, section 4.5): FCFS, whole prompts, at most ``max_batched_tokens`` of them; ``watermark`` of the pages stays
    available at admission; when decoding runs out of pages the latest arrival is
    preempted and computed again later, and nothing is admitted in that iteration. Defaults are vLLM 0.2's.

    Deviations: a prompt above the limit runs alone instead of being refused, and an idle engine ignores the watermark.
    """

    max_batched_tokens: int = 2560
    max_running: int = 256
    watermark: float = 0.01

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_batched_tokens", "max_running")
        require_share(self, "watermark")

    def plan(self, view: SchedulerView) -> Plan:
        plan = Plan(stable=True)
        admit_whole_prompts(
            view,
            plan,
            view.available_pages,
            budget=self.max_batched_tokens,
            max_running=self.max_running,
            reserve=int(self.watermark * view.device_pages),
        )
        if not plan.shares:
            serve_all(view, plan, by_arrival=True)
        return plan
