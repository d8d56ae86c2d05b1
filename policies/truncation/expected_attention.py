"""What queries to come are expected to look at stays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...framework.policy import (
    ALL_QUERIES,
    AttentionTruncation,
    CacheShape,
    CacheView,
    Needs,
    Rotation,
    register,
    require_at_least,
)

if TYPE_CHECKING:
    from torch import Tensor

# Notes of the prompt's queries so far: how many [], their mean [L, H, D], sum of (q - mean)(q - mean)^T [L, H, D, D].
COUNT, MEAN, SPREAD = "count", "mean", "spread"


@register("truncation", "expected_attention")
@dataclass
class ExpectedAttention(AttentionTruncation):
    """Devoto et al., "Expected Attention: KV cache compression by estimating attention from future queries
    distribution", arXiv 2510.00636, section 3.

    The queries of each head, before rotation, are taken as Gaussian: mean m and covariance S over the prompt's queries
    but the context's first ``sink``. Both are rotated by R, the average rotary embedding of the next
    ``future_positions`` places: m' = R m, S' = R S R^T. At the end of a prompt a key k is expected to be given
    exp(k.m' / sqrt(D) + k S' k / 2 D), the mean of a log-normal; that is normalised over the keys (softmax), averaged
    over the query heads of a KV head (``group``), and the score is (that + ``epsilon``) * ||v||. The highest stay, and
    the first ``sink`` tokens. While decoding the cache grows. As in kvpress's ``ExpectedAttentionPress``, whose
    defaults these are (512 places, 4 tokens, epsilon 0; 0.01 when combined with Ada-KV).

    Deviations: queries are taken after a norm of theirs where the model has one (kvpress refuses such models). D is the
    head's width even where a model scales its scores by something else. In later turns, for which nothing is published,
    the turn's own queries choose among all that is cached; so do those of the chunks so far with ``between_chunks``. A
    prompt without a query beyond the first ``sink`` is judged by all of its queries. With ``positions`` cache, keys and
    places to come are those of the cache before the cut.
    """

    sink: int = 4
    future_positions: int = 512
    epsilon: float = 0.0

    while_decoding: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rotation: Rotation | None = None
        require_at_least(self, 0, "sink", "epsilon")
        require_at_least(self, 1, "future_positions")
        self._require_more_than(self.sink, "sink")

    @property
    def needs(self) -> Needs:
        return Needs(queries=ALL_QUERIES, decoding=False)

    def bind(self, shape: CacheShape) -> None:
        super().bind(shape)
        self._rotation = shape.rotation

    def least(self, tokens: int) -> int:
        return min(self.sink, tokens)

    def protected(self, view: CacheView) -> Tensor:
        return (view.positions >= 0) & (view.positions < self.sink)

    def observe(self, view: CacheView) -> None:
        """Take in the prompt's queries, so that chunks do not matter (pairwise update of Chan, Golub and LeVeque)."""
        if view.stage == "decode":
            return
        queries, first = view.unrotated_queries, view.tokens - view.queries
        if first <= self.sink < view.tokens:
            view.notes.clear()  # there was none beyond the first few
            queries = queries[:, :, self.sink - first :]
        count, mean = queries.new_tensor(float(queries.shape[2])), queries.mean(dim=2)
        rest = queries - mean.unsqueeze(2)
        spread = rest.mT @ rest
        if COUNT in view.notes:
            before = view.notes[COUNT]
            apart = mean - view.notes[MEAN]
            spread = spread + view.notes[SPREAD] + before * count / (before + count) * _outer(apart)
            mean, count = view.notes[MEAN] + apart * count / (before + count), before + count
        view.notes.update({COUNT: count, MEAN: mean, SPREAD: spread})

    def keep(self, view: CacheView) -> Tensor | None:
        chosen = super().keep(view)
        if view.stage == "prompt":
            view.notes.clear()
        return chosen

    def score(self, view: CacheView) -> Tensor:
        """[L, G, n]; what it says of the first ``sink`` tokens does not count."""
        mean, covariance = self._to_come(view)
        import torch

        logits = torch.stack([_expected(*layer) for layer in zip(self._keys(view), mean, covariance, strict=True)])
        outside = (view.positions < 0) | self.protected(view)
        outside = outside.repeat_interleave(logits.shape[1] // outside.shape[1], dim=1)
        expected = view.grouped(logits.masked_fill(outside, -1e30).softmax(dim=-1), self.group)
        norms: Tensor = view.values().norm(dim=-1)
        return (expected + self.epsilon) * norms

    def _to_come(self, view: CacheView) -> tuple[Tensor, Tensor]:
        """Mean [L, H, D] and covariance [L, H, D, D] of the next queries as they will be rotated."""
        mean, covariance = view.notes[MEAN], view.notes[SPREAD] / view.notes[COUNT]
        if self._rotation is None:
            return mean, covariance
        first, count = self._next(view), self.future_positions
        turned = self._rotation.averaged(covariance, first, count).mT
        mean = self._rotation.averaged(mean.unsqueeze(2), first, count).squeeze(2)
        return mean, self._rotation.averaged(turned, first, count)

    def _next(self, view: CacheView) -> int:
        """The place of the next query."""
        return view.tokens if self.positions == "true" else view.positions.shape[-1]

    def _keys(self, view: CacheView) -> Tensor:
        """[L, G, n, D], rotated."""
        keys = view.keys()
        if self._rotation is None or self.positions == "true":
            return keys
        import torch

        return self._rotation.turned(keys, torch.arange(keys.shape[2], device=keys.device))


def _outer(vectors: Tensor) -> Tensor:
    return vectors.unsqueeze(-1) * vectors.unsqueeze(-2)


def _expected(keys: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Logarithms [H, n] of what queries of ``mean`` [H, D] and ``covariance`` [H, D, D] give ``keys`` [G, n, D]."""
    width = keys.shape[-1]
    keys = keys.repeat_interleave(mean.shape[0] // keys.shape[0], dim=0)
    linear = (keys @ mean.unsqueeze(-1)).squeeze(-1) / math.sqrt(width)
    return linear + ((keys @ covariance) * keys).sum(dim=-1) / (2 * width)
