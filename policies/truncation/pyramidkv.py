"""SnapKV with more tokens in the first layers than in the last ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...framework.policy import CacheView, Stage, register, require_at_least
from .snapkv import SnapKV

if TYPE_CHECKING:
    from torch import Tensor


@register("truncation", "pyramidkv")
@dataclass
class PyramidKV(SnapKV):
    """Cai et al., "PyramidKV: dynamic KV cache compression based on pyramidal information funneling", 2024, section 3.

    SnapKV's choice (see there) with a budget that falls from layer to layer. With b tokens of the budget beside the
    window, layer l of L keeps max - l * step tokens of a prompt of n, and the window: min = b // ``beta``, max = 2 b -
    min, but if max >= n - window: max = n - window, min = 2 b - max; step = (max - min) // (L - 1). Below 2 b tokens
    all layers keep b. This is the official ``PyramidKVCluster`` of KVCache-Factory; because of the floor, the layers
    keep more than the budget on average (4 % for 128 of 8000 tokens on 32 layers). Official beta 20, kernel 5, avg.

    Deviations: those of SnapKV; n is the whole context, in later turns too; one layer keeps b. K/V are not merged.
    """

    beta: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "beta")

    def layer_tokens(self, layers: int, budget: int, tokens: int) -> list[int]:
        """What each of ``layers`` keeps of a context of ``tokens``, the window included."""
        even = budget - self.window
        if even < 1:
            return [self.least(tokens)] * layers
        if layers == 1 or tokens < 2 * even:
            return [budget] * layers
        low = even // self.beta
        high = 2 * even - low
        if high >= tokens - self.window:
            high = tokens - self.window
            low = 2 * even - high
        step = (high - low) // (layers - 1)
        return [high - layer * step + self.window for layer in range(layers)]

    def sizes(self, view: CacheView, score: Tensor, budget: int) -> Tensor:
        import torch

        sizes = self.layer_tokens(view.positions.shape[0], budget, view.tokens)
        return torch.tensor(sizes, device=view.positions.device).unsqueeze(-1)

    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Stage) -> float:
        """Exact for a context that was never cut, of a model that is known (:meth:`bind`); else the budget."""
        even = super().kept_tokens(cached_tokens, tokens, stage)
        if self._shape is None or even == cached_tokens:
            return even
        sizes = self.layer_tokens(self._shape.layers, self.budget(tokens), tokens)
        return sum(min(cached_tokens, size) for size in sizes) / len(sizes)
