"""Keys of small norm stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...framework.policy import CacheView, ScoredTruncation, register

if TYPE_CHECKING:
    from torch import Tensor


@register("truncation", "knorm")
@dataclass
class KNorm(ScoredTruncation):
    """Devoto et al., "A simple and effective L2 norm-based strategy for KV cache compression", EMNLP 2024.

    Keys with the smallest L2 norm stay: score = -||k||. Rotation does not change norms, attention is not needed. As in
    kvpress's ``KnormPress``, but for decoding, where tokens leave as they do after the prompt. Deviation: no layer is
    left out (the paper spares the first two of some models).
    """

    def score(self, view: CacheView) -> Tensor:
        from torch.linalg import vector_norm

        norms: Tensor = vector_norm(view.keys(), dim=-1)
        return -norms
