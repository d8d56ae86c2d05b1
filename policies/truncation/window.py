"""A sliding window: the newest tokens stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...framework.policy import BudgetTruncation, CacheView, newest_tokens, register

if TYPE_CHECKING:
    from torch import Tensor


@register("truncation", "window")
@dataclass
class Window(BudgetTruncation):
    """The last tokens stay, the window attention of Beltagy et al., "Longformer", 2020, applied to the cache.

    With ``positions`` ``true`` the survivors keep their rotation; models trained without a window break as soon as the
    first tokens have left (Xiao et al., ICLR 2024, figure 3).
    """

    def select(self, view: CacheView, budget: int) -> Tensor:
        return newest_tokens(view, budget)
