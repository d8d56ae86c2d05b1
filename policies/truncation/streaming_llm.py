"""Attention sinks and the most recent tokens stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...framework.policy import BudgetTruncation, CacheView, newest_tokens, register, require_at_least

if TYPE_CHECKING:
    from torch import Tensor


@register("truncation", "streaming_llm")
@dataclass
class StreamingLLM(BudgetTruncation):
    """Xiao et al., "Efficient streaming language models with attention sinks", ICLR 2024, section 3.2.

    The first ``start`` tokens and the last ``recent`` stay; nothing is scored. This is the official
    ``StartRecentKVCache`` with its defaults, 4 and 512 (its evaluation script has 1 and 255). ``recent`` null: what the
    budget leaves. As published ``positions`` is ``cache``: keys are cached before rotation, and keys and queries are
    rotated by their place in the cache (``backend.decoupled``); ``true`` is kvpress's ``StreamingLLMPress``.

    Deviations: room is made after a step, not before it (``evict_for_space``); a prompt is computed whole, or in the
    scheduler's chunks, before the first cut.
    """

    positions: Literal["true", "cache"] = "cache"
    budget_tokens: int | None = 516
    budget_ratio: float | None = None
    start: int = 4
    recent: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 0, "start")
        self._require_more_than(self.start, "start")

    def _check_budget(self) -> None:
        if self.recent is None:
            super()._check_budget()
        elif self.recent < 1:
            raise ValueError(f"recent is {self.recent}; it must be at least 1, or null")
        elif self.budget_tokens is not None or self.budget_ratio is not None:
            raise ValueError(
                f"recent is {self.recent}: with start that is the budget, so budget_tokens and budget_ratio must be "
                f"null; they are {self.budget_tokens} and {self.budget_ratio}"
            )

    def wanted(self, tokens: int) -> int:
        return super().wanted(tokens) if self.recent is None else self.start + self.recent

    def least(self, tokens: int) -> int:
        return self.start + 1

    def select(self, view: CacheView, budget: int) -> Tensor:
        sinks = (view.positions >= 0) & (view.positions < self.start)
        return sinks | newest_tokens(view, max(1, budget - self.start))
