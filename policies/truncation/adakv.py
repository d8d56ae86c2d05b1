"""SnapKV with more tokens in the heads that look further."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...framework.policy import CacheView, Stage, in_slots, oldest_first, register
from .snapkv import SnapKV

if TYPE_CHECKING:
    from torch import Tensor


@register("truncation", "adakv")
@dataclass
class AdaKV(SnapKV):
    """Feng et al., "Ada-KV: optimizing KV cache eviction by adaptive budget allocation", NeurIPS 2025, section 3.3.

    SnapKV's scores (see there) with a budget that differs from head to head. With b tokens beside the window for each
    of the G heads of a layer, c_h is how many of the layer's G b highest scores are head h's; it keeps its own
    round((1 - ``floor_alpha``) c_h + int(``floor_alpha`` b)) highest, and the window. Halves are rounded to even. A
    layer's total can miss G b, by up to 1.5 for each head. This is the official ``AdaptiveSnapKVCluster`` with its
    defaults (window 32, kernel 7, max, 512 tokens, floor 0.5; kvpress: 0.2).

    Deviations: those of SnapKV; no normalisation by the heads' own shares, no dense first layers.
    """

    kernel: int = 7
    pooling: Literal["avg", "max"] = "max"
    floor_alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.floor_alpha <= 1:
            raise ValueError(f"floor_alpha is {self.floor_alpha}; it must be from 0 to 1")

    def _floor(self, budget: int) -> int:
        return int(self.floor_alpha * max(0, budget - self.window) + 1e-9)

    def sizes(self, view: CacheView, score: Tensor, budget: int) -> Tensor:
        """int64 [L, G]."""
        import torch

        heads, slots = score.shape[1:]
        candidates = (view.positions >= 0) & ~self.protected(view)
        order = oldest_first(view.positions)
        flat = score.masked_fill(~candidates, -1.0).gather(-1, order).transpose(1, 2).flatten(1)  # older tokens first
        total = heads * max(0, budget - self.window)
        best = flat.argsort(dim=-1, descending=True, stable=True)
        rank = torch.arange(heads * slots, device=score.device).expand(flat.shape)
        taken = in_slots(rank < total, best).view(-1, slots, heads).transpose(1, 2) & candidates.gather(-1, order)
        sizes = (taken.sum(dim=-1).double() * (1.0 - self.floor_alpha) + self._floor(budget)).round().long()
        return sizes + self.protected(view).sum(dim=-1)

    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Stage) -> float:
        """But for the rounding of each head, up to half a token."""
        even = super().kept_tokens(cached_tokens, tokens, stage)
        rest = max(0, self.budget(tokens) - self.window)
        return even if even == cached_tokens else even - self.floor_alpha * rest + self._floor(self.budget(tokens))
