"""A baseline that knows nothing: tokens by lot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...framework.policy import CacheView, ScoredTruncation, register

if TYPE_CHECKING:
    from torch import Tensor

STEPS = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB)  # odd numbers without a pattern


@register("truncation", "random")
@dataclass
class Random(ScoredTruncation):
    """A baseline that knows nothing: of the context's tokens a sample without preference stays in each plane.

    Each token draws its lot once, from ``seed``, its plane (layer x KV head) and its position: what stays at a length
    of context depends on nothing else, neither on chunks nor on the batch, and at every length it is an even sample of
    all tokens. kvpress's ``RandomPress`` draws once after the prompt; drawing anew at every step would favour recent
    tokens.
    """

    seed: int = 0

    def score(self, view: CacheView) -> Tensor:
        import torch

        layers, heads = view.positions.shape[:2]
        plane = torch.arange(layers * heads, device=view.positions.device).view(layers, heads, 1)
        mixed = torch.full_like(plane, self.seed % 2**31)
        for part, step in zip((plane, view.positions), STEPS, strict=False):
            mixed = _stirred(mixed * STEPS[2] + (part + 1) * step)
        return mixed.bitwise_and(2**53 - 1).to(torch.float64)


def _stirred(words: Tensor) -> Tensor:
    """Each bit of a word comes to depend on all of them; int64 wraps around."""
    for shift, step in zip((30, 27, 31), STEPS, strict=True):
        words = (words ^ ((words >> shift) & (2 ** (64 - shift) - 1))) * step
    return words ^ ((words >> 32) & (2**32 - 1))
