"""What the newest query looks at stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...framework.policy import CacheView, Needs, ScoredTruncation, in_slots, newest_tokens, oldest_first, register

if TYPE_CHECKING:
    from torch import Tensor


@register("truncation", "tova")
@dataclass
class TOVA(ScoredTruncation):
    """Oren et al., "Transformers are multi-state RNNs", EMNLP 2024, section 3.2: token omission via attention.

    The tokens stay that the last query gives the most attention, averaged over all query heads of a layer; the KV heads
    of a layer keep the same tokens. As in the official ``tova_cache.py`` nothing is protected: the newest token can
    leave at once. ``protects_newest`` is kvpress's ``TOVAPress``.

    Deviation: with ``between_chunks`` the last query of each chunk decides too.
    """

    protects_newest: bool = False

    @property
    def needs(self) -> Needs:
        return Needs(rows=1)

    def protected(self, view: CacheView) -> Tensor | None:
        return newest_tokens(view, 1) if self.protects_newest else None

    def score(self, view: CacheView) -> Tensor:
        """[L, G, n], the same for a token in all heads of a layer, whichever slots it has there."""
        order = oldest_first(view.positions)
        last = view.rows[:, :, -1]  # [L, H, n]
        in_order = order.repeat_interleave(last.shape[1] // order.shape[1], dim=1)
        mean = last.gather(-1, in_order).mean(dim=1, keepdim=True)
        return in_slots(mean.expand(order.shape).contiguous(), order)
