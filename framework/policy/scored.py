"""Token-level truncation made simple: knobs for stages and budgets, and policies that only score tokens."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from .tokens import CacheShape, CacheView, Grouping, Needs, Stage, TokenTruncation

if TYPE_CHECKING:
    from torch import Tensor

POSITION_BYTES = 8  # the place of a kept token in its context, as the executor remembers it


def require_choice(name: str, value: object, *allowed: object) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def require_budget(budget_tokens: int | None, budget_ratio: float | None) -> None:
    """Raise ValueError unless exactly one of the two is given: at least one token, or a share above 0, at most 1."""
    if (budget_tokens is None) == (budget_ratio is None):
        raise ValueError(
            f"budget_tokens is {budget_tokens} and budget_ratio is {budget_ratio}; "
            "exactly one of the two must be given, the other null"
        )
    if budget_tokens is not None and budget_tokens < 1:
        raise ValueError(f"budget_tokens is {budget_tokens}; it must be at least 1")
    if budget_ratio is not None and not 0 < budget_ratio <= 1:
        raise ValueError(f"budget_ratio is {budget_ratio}; it must be more than 0 and at most 1")


def share_of(ratio: float, tokens: int) -> int:
    """``ratio * tokens``, rounded down; what is missing by the rounding of floats alone counts."""
    return math.floor(ratio * tokens + 1e-9)


@dataclass
class StagedTruncation(TokenTruncation):
    """Knows when to cut.

    Attributes
    ----------
    positions: see ``TokenTruncation``.
    between_chunks: cut between the chunks of a chunked prompt too; False: first at its end, as published.
    while_decoding: cut after every decoded token.
    """

    positions: Literal["true", "cache"] = "true"
    between_chunks: bool = False

    while_decoding: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_choice("positions", self.positions, "true", "cache")

    def cuts(self, stage: Stage) -> bool:
        """Tokens may leave at ``stage``."""
        return {"chunk": self.between_chunks, "prompt": True, "decode": self.while_decoding}[stage]


@dataclass
class BudgetTruncation(StagedTruncation):
    """Keeps so many tokens; narrows :meth:`keep` down to :meth:`select`.

    Attributes
    ----------
    budget_tokens: kept tokens of each plane, on average over the planes.
    budget_ratio: the same as a share of the context's tokens so far, rounded down, at least one token. Exactly one of
        the two is given.
    counts_metadata: the bytes of what is remembered beside K/V (the places of the kept tokens, the policy's state)
        count against the budget, so that contestants of equal budget take equal bytes; False: K/V alone, as published.
    """

    budget_tokens: int | None = None
    budget_ratio: float | None = 0.2
    counts_metadata: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._shape: CacheShape | None = None
        self._check_budget()

    def _check_budget(self) -> None:
        require_budget(self.budget_tokens, self.budget_ratio)

    def _require_more_than(self, least: int, what: str) -> None:
        """Refuse a budget in tokens that leaves nothing beside ``what`` the policy must keep."""
        if self.budget_tokens is not None and self.budget_tokens <= least:
            raise ValueError(f"budget_tokens is {self.budget_tokens}; it must be more than {what} = {least}")

    def bind(self, shape: CacheShape) -> None:
        self._shape = shape

    def state_bytes(self, shape: CacheShape) -> float:
        """Bytes of the policy's own state for a kept token in one plane."""
        return 0.0

    def wanted(self, tokens: int) -> int:
        """The budget in a context of ``tokens``, before metadata count."""
        if self.budget_tokens is not None:
            return self.budget_tokens
        return share_of(self.budget_ratio or 0.0, tokens)

    def budget(self, tokens: int) -> int:
        """Tokens that a plane keeps of a context of ``tokens``, on average over the planes.

        Raises
        ------
        ValueError
            If metadata count and nobody called :meth:`bind`.
        """
        wanted = self.wanted(tokens)
        if self.counts_metadata:
            if self._shape is None:
                raise ValueError("counts_metadata is true, but the shape of the model's cache is not known")
            beside = POSITION_BYTES + self.state_bytes(self._shape)
            wanted = share_of(self._shape.plane_bytes / (self._shape.plane_bytes + beside), wanted)
        return max(1, wanted)

    def least(self, tokens: int) -> int:
        """Tokens that are kept whatever the budget."""
        return 1

    def keep(self, view: CacheView) -> Tensor | None:
        budget = self.budget(view.tokens)
        if not self.cuts(view.stage) or view.positions.shape[-1] <= max(budget, self.least(view.tokens)):
            return None
        return self.select(view, budget)

    @abstractmethod
    def select(self, view: CacheView, budget: int) -> Tensor:
        """Bool [L, G, n]: what stays where planes hold more than ``budget`` tokens; see ``TokenTruncation.keep``."""

    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Stage) -> float:
        if not self.cuts(stage):
            return cached_tokens
        return min(cached_tokens, max(self.budget(tokens), self.least(tokens)))


class ScoredTruncation(BudgetTruncation, ABC):
    """Keeps the tokens with the highest scores, plane by plane; narrows ``select`` down to :meth:`score`.

    Ties: the older token stays (official code leaves it to ``topk``, which promises nothing).
    """

    @abstractmethod
    def score(self, view: CacheView) -> Tensor:
        """Float [L, G, n], finite; higher stays."""

    def protected(self, view: CacheView) -> Tensor | None:
        """Bool [L, G, n]: tokens that stay first, even where they are more than the budget; None: none."""
        return None

    def sizes(self, view: CacheView, score: Tensor, budget: int) -> int | Tensor:
        """How many tokens each plane keeps: one number, or int64 [L, 1] or [L, G]."""
        return budget

    def select(self, view: CacheView, budget: int) -> Tensor:
        score = self.score(view)
        return highest_scores(score, self.sizes(view, score, budget), view.positions, self.protected(view))


@dataclass
class AttentionTruncation(ScoredTruncation, ABC):
    """Scores by attention.

    Attributes
    ----------
    group: how the query heads that share a KV head become one score.
    """

    group: Grouping = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("group", self.group, "mean", "max", "sum")


@dataclass
class AccumulatedAttention(AttentionTruncation):
    """Remembers, by query head, the attention that every cached token was given so far (``state["attention"]``, float32
    [L, H, n]), which is its score; the query heads are combined when it decides, so that chunks do not matter."""

    @property
    def needs(self) -> Needs:
        return Needs(column_sums=True)

    def state_bytes(self, shape: CacheShape) -> float:
        return 4 * shape.heads / shape.kv_heads

    def observe(self, view: CacheView) -> None:
        earlier = view.state.get("attention")
        view.state["attention"] = view.column_sums if earlier is None else earlier + view.column_sums

    def score(self, view: CacheView) -> Tensor:
        return view.grouped(view.state["attention"], self.group)


def newest_tokens(view: CacheView, count: int) -> Tensor:
    """Bool [L, G, n]: the cached ones of the context's last ``count`` tokens."""
    return view.positions >= max(0, view.tokens - count)


def oldest_first(positions: Tensor) -> Tensor:
    """int64 [..., n]: the slots by position, those that hold nothing (-1) last."""
    import torch

    return positions.masked_fill(positions < 0, torch.iinfo(positions.dtype).max).argsort(dim=-1, stable=True)


def in_slots(in_order: Tensor, order: Tensor) -> Tensor:
    """``in_order`` [..., n], sorted by ``order``, at its slots again."""
    return in_order.new_empty(in_order.shape).scatter_(-1, order, in_order)


def highest_scores(score: Tensor, sizes: int | Tensor, positions: Tensor, protected: Tensor | None = None) -> Tensor:
    """Keep the ``sizes`` highest scores of each plane and all that is ``protected``, which counts first.

    Parameters
    ----------
    score: float [L, G, n], finite.
    sizes: a number, or int64 that broadcasts to [L, G].
    positions: int64 [L, G, n], -1 in slots that hold nothing. Of equal scores the lower position stays.
    protected: bool [L, G, n].

    Returns
    -------
    Bool [L, G, n].
    """
    import torch

    held = positions >= 0
    protected = torch.zeros_like(held) if protected is None else protected & held
    if isinstance(sizes, int) and score.shape[-1] == sizes + 1:
        return _all_but_the_lowest(score, positions, held, protected)
    score = score.masked_fill(~held, -math.inf).masked_fill(protected, math.inf)
    by_age = oldest_first(positions)
    order = by_age.gather(-1, score.gather(-1, by_age).argsort(dim=-1, descending=True, stable=True))
    rank = torch.arange(score.shape[-1], device=score.device).expand(score.shape)
    limit = sizes if isinstance(sizes, int) else sizes.unsqueeze(-1)
    return in_slots(rank < limit, order) & held | protected


def _all_but_the_lowest(score: Tensor, positions: Tensor, held: Tensor, protected: Tensor) -> Tensor:
    """What one token more than the budget leads to, as at each decoded token: nothing need be sorted."""
    score = score.masked_fill(~held | protected, math.inf)
    lowest = score.amin(dim=-1, keepdim=True)
    youngest = positions.masked_fill(score != lowest, -1).argmax(dim=-1, keepdim=True)
    leaves = held.all(dim=-1, keepdim=True) & (
        lowest < math.inf
    )  # else the plane is within the budget, or all must stay
    return held.scatter(-1, youngest, ~leaves & held.gather(-1, youngest))
