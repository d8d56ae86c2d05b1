"""Keys unlike the others stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...framework.policy import CacheView, ScoredTruncation, register

if TYPE_CHECKING:
    from torch import Tensor


@register("truncation", "keydiff")
@dataclass
class KeyDiff(ScoredTruncation):
    """Park et al., "KeyDiff: key similarity-based KV cache eviction for long-context LLM inference", NeurIPS 2025.

    Keys that are least similar to the plane's mean direction stay: score = -cos(k, mean of k / ||k||), as in kvpress's
    ``KeyDiffPress``. The keys are those of the cache as they are stored, rotated unless ``positions`` is ``cache``.
    ``between_chunks`` is the paper's block-wise prompt processing. The anchor is taken anew at every cut, over what is
    cached then.
    """

    def score(self, view: CacheView) -> Tensor:
        from torch.nn.functional import cosine_similarity, normalize

        keys = view.keys()  # [L, G, n, D]
        directions = normalize(keys, dim=-1).masked_fill((view.positions < 0).unsqueeze(-1), 0.0)
        return -cosine_similarity(keys, directions.sum(dim=2, keepdim=True), dim=-1)  # the length does not matter
