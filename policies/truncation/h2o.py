"""Heavy hitters, the tokens given most attention so far, and recent ones stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...framework.policy import AccumulatedAttention, CacheView, newest_tokens, register, require_choice, share_of

if TYPE_CHECKING:
    from torch import Tensor


@register("truncation", "h2o")
@dataclass
class H2O(AccumulatedAttention):
    """Zhang et al., "H2O: heavy-hitter oracle for efficient generative inference of LLMs", NeurIPS 2023, section 4.

    The last ``recent`` tokens stay, and of the others the ``heavy`` ones that were given the most attention since they
    came, summed over all queries. Both are numbers of tokens from 1 up, shares of the context's tokens below 1, and
    together the budget; with a budget at most one of them is given, and none means half the budget each (the published
    20 % are 10 % and 10 %).

    ``variant``:

    - ``real_drop``: the official ``H2OKVCache_LayerWise`` (``utils_real_drop``): sums never decay; more than heavy +
      recent tokens are cut back to the heaviest before the last ``recent``, and these.
    - ``flexgen``: the official FlexGen code (``_heavy_hitter_pruning``): a prompt leaves the ``heavy`` highest before
      the last ``recent`` - 1, and these; each decoded token drives out the lowest but the last ``recent``. One token
      fewer in all.
    - ``decayed``: what was seen before a step counts ``decay`` to the power of the step's queries (no official code;
      the queries of one chunk count alike).
    - ``age_normalised``: the sum is divided by how many queries could see the token (kvpress's
      ``ObservedAttentionPress``, which cuts after the prompt only).

    Deviations: shares grow with the context (official: fixed at the first prompt); query heads that share a KV head are
    combined by ``group`` (official: one KV head per query head); sums are float32. The two masked simulations of the
    official repository, one of which sees future queries, are not here.
    """

    heavy: float | None = None
    recent: float | None = None
    variant: Literal["real_drop", "flexgen", "decayed", "age_normalised"] = "real_drop"
    decay: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("variant", self.variant, "real_drop", "flexgen", "decayed", "age_normalised")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay is {self.decay}; it must be more than 0 and at most 1")
        for name in ("heavy", "recent"):
            self._check_part(name, getattr(self, name))
        if self.heavy == 0 and self.recent == 0:
            raise ValueError("heavy and recent are 0; at least one must be more")

    def _check_part(self, name: str, part: float | None) -> None:
        if part is None:
            return
        if part < 0 or (part > 1 and part != int(part)):
            raise ValueError(f"{name} is {part}; it must be a whole number of tokens, or a share from 0 to below 1")
        if part == 0 and self.variant == "flexgen":
            raise ValueError(f"{name} is {part}; variant=flexgen needs at least 1")
        if part >= 1 and self.budget_tokens is not None and part > self.budget_tokens:
            raise ValueError(f"{name} is {part}; it must be at most budget_tokens = {self.budget_tokens}")

    def _check_budget(self) -> None:
        if self.heavy is None or self.recent is None:
            super()._check_budget()
        elif self.budget_tokens is not None or self.budget_ratio is not None:
            raise ValueError(
                f"heavy is {self.heavy} and recent is {self.recent}: that is the budget, so budget_tokens and "
                f"budget_ratio must be null; they are {self.budget_tokens} and {self.budget_ratio}"
            )

    def wanted(self, tokens: int) -> int:
        if self.heavy is None or self.recent is None:
            return super().wanted(tokens)
        return _tokens(self.heavy, tokens) + _tokens(self.recent, tokens)

    def budget(self, tokens: int) -> int:
        return max(1, super().budget(tokens) - (self.variant == "flexgen"))

    def recent_tokens(self, tokens: int) -> int:
        """How many of ``heavy`` and ``recent`` together are recent ones, in a context of ``tokens``."""
        both = super().budget(tokens)
        if self.recent is not None:
            return min(both, _tokens(self.recent, tokens))
        return max(0, both - (both // 2 if self.heavy is None else _tokens(self.heavy, tokens)))

    def protected(self, view: CacheView) -> Tensor:
        recent = self.recent_tokens(view.tokens)
        if self.variant == "flexgen" and view.stage != "decode":
            recent -= 1
        return newest_tokens(view, min(recent, self.budget(view.tokens)))

    def observe(self, view: CacheView) -> None:
        if self.variant == "decayed" and "attention" in view.state:
            view.state["attention"] = view.state["attention"] * self.decay**view.queries
        super().observe(view)

    def score(self, view: CacheView) -> Tensor:
        attention = super().score(view)
        return attention / (view.tokens - view.positions) if self.variant == "age_normalised" else attention


def _tokens(part: float, tokens: int) -> int:
    return int(part) if part >= 1 else share_of(part, tokens)
