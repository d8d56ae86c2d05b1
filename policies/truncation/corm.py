"""Keys that mattered to any recent query stay; there is no budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...framework.policy import (
    CacheShape,
    CacheView,
    Needs,
    Stage,
    StagedTruncation,
    newest_tokens,
    register,
    require_at_least,
)

if TYPE_CHECKING:
    from torch import Tensor

SLACK = 1e-5  # of the threshold, for rounding: even attention must count as average


@register("truncation", "corm")
@dataclass
class CORM(StagedTruncation):
    """Dai et al., "CORM: cache optimization with recent message for LLM inference", 2024, section 4.

    A key is minor to query t (the t-th token of the context) if it is given less than an average share, A < 1 / t. A
    token that was minor to each of the last ``window`` queries leaves, but for the last ``recent`` tokens. How many
    stay differs from head to head; there is no budget. The paper's figures are for 256 + 256. No official code was
    found.

    The booleans of the last ``window`` queries come down to one number for each key, the last t to which it was not
    minor (``state["major"]``, float32 [L, G, n]; 0: none).

    Deviations: where query heads share a KV head, a key that is not minor to one of them is not minor (not said in the
    paper; the cautious choice). t counts the context's tokens, those that have left included (the formula; after
    evictions the average over the cache would be more). ``threshold`` scales 1 / t, 1 as published: the only way to
    trade memory for quality. A simulation takes ``assumed_share`` of all but the recent tokens to stay (the paper saves
    up to 70 %).
    """

    window: int = 256
    threshold: float = 1.0
    recent: int = 256
    assumed_share: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "window")
        require_at_least(self, 0, "recent")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; it must be more than 0 and at most 1")
        if not 0 <= self.assumed_share <= 1:
            raise ValueError(f"assumed_share is {self.assumed_share}; it must be from 0 to 1")

    @property
    def needs(self) -> Needs:
        return Needs(rows=self.window)

    def state_bytes(self, shape: CacheShape) -> float:
        """Bytes of the policy's own state for a kept token in one plane."""
        return 4.0

    def observe(self, view: CacheView) -> None:
        import torch

        rows = view.rows  # [L, H, w, n]
        last = torch.arange(view.tokens - rows.shape[2] + 1, view.tokens + 1, device=rows.device, dtype=rows.dtype)
        last = last.view(-1, 1)
        major = ((rows * last >= self.threshold * (1 - SLACK)) * last).amax(dim=2)
        major = view.grouped(major, "max")
        earlier = view.state.get("major")
        view.state["major"] = major if earlier is None else earlier.maximum(major)

    def keep(self, view: CacheView) -> Tensor | None:
        if not self.cuts(view.stage) or view.tokens <= self.recent:
            return None
        major = (view.positions >= 0) & (view.state["major"] > view.tokens - self.window)
        return major | newest_tokens(view, self.recent)

    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Stage) -> float:
        if not self.cuts(stage):
            return cached_tokens
        recent = min(self.recent, tokens)
        return min(cached_tokens, max(1.0, recent + self.assumed_share * (tokens - recent)))
