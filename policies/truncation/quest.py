"""Each decoded token attends to the pages that may matter most to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...framework.policy import Selection, register, require_at_least, require_budget, share_of

if TYPE_CHECKING:
    from torch import Tensor

LEAST_PAGES = 3


@register("truncation", "quest")
@dataclass
class Quest(Selection):
    """Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", ICML 2024, section 3;
    official code ``evaluation/quest_attention.py``.

    For each page and channel the least and the largest key are known. A page's score, at least that of any key in it,
    is the sum over channels of max(q * low, q * high). A decoded token attends, in each layer from ``dense_layers`` on,
    to the k pages with the highest scores, k = min(max(3, budget // page size), pages); prompts attend to everything.
    Nothing leaves the cache, so that it frees no memory. Every query head chooses for itself, those that share keys too
    (official: keys are repeated).

    ``budget_tokens``, or ``budget_ratio`` as a share of the context, rounded down; exactly one is given (official: 1024
    tokens). ``dense_layers`` 2 is the official code's. Its pages have 16 tokens; here ``memory.page_size``.

    Deviations: the last page, which holds the token's own key, is always attended to (k + 1 pages where it is not among
    the k); a budget of the whole context or more attends to everything (official: the rest of a division is lost);
    layers with a sliding window are attended whole. As in the official code, a part of a prompt that is one token long
    chooses pages as a decoded token does.
    """

    budget_tokens: int | None = None
    budget_ratio: float | None = 0.2
    dense_layers: int = 2

    def __post_init__(self) -> None:
        require_budget(self.budget_tokens, self.budget_ratio)
        require_at_least(self, 0, "dense_layers")

    def budget(self, tokens: int) -> int:
        """Tokens to attend to in a context of ``tokens``."""
        return share_of(self.budget_ratio, tokens) if self.budget_ratio is not None else int(self.budget_tokens or 0)

    def pages(self, layer: int, query: Tensor, low: Tensor, high: Tensor, tokens: int, page_size: int) -> Tensor | None:
        from ...kernels.page_bounds import page_scores

        budget = self.budget(tokens)
        count = max(LEAST_PAGES, budget // page_size)
        if layer < self.dense_layers or budget >= tokens or count >= low.shape[0]:
            return None
        best = page_scores(query, low, high).argsort(dim=-1, descending=True, stable=True)
        return best[:, :count].sort(dim=-1).values
