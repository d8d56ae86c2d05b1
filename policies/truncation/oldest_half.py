"""The oldest half goes when the window is full."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ...framework.policy import Truncation, register


@register("truncation", "oldest_half")
@dataclass
class OldestHalf(Truncation):
    """Gao et al., "Cost-efficient LLM serving ... with CachedAttention", USENIX ATC 2024, section 3.4.

    When a context would outgrow the window, ``ratio`` of the window (0.5) is dropped from its oldest end, again until
    prompt and reply fit. ``keeps_kv`` true is the paper's: stored K/V of the survivors are used on at their new
    positions, which is right only where keys are stored without positions (``backend.decoupled``); on keys with
    positions it is the naive truncation that the paper shows to break. ``keeps_kv`` false is its baseline: the
    shortened context is computed anew, and what was stored of the conversation is lost (token truncation, "overflow
    invalidates").

    Deviations: the reply's length counts, so that a turn never overflows while it decodes; the engine may round to
    pages.
    """

    ratio: float = 0.5
    keeps_kv: bool = True

    lossless: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}; it must be more than 0 and at most 1")

    @property
    def keeps(self) -> bool:
        return self.keeps_kv

    def first_kept(self, history_tokens: int, needed_tokens: int, limit: int) -> int:
        if needed_tokens <= limit:
            return 0
        step = max(1, math.floor(self.ratio * limit))
        return min(history_tokens, -(-(needed_tokens - limit) // step) * step)
