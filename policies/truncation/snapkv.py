"""What the last queries of the prompt look at stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ...framework.policy import (
    AttentionTruncation,
    CacheView,
    Needs,
    in_slots,
    newest_tokens,
    oldest_first,
    register,
    require_at_least,
    require_choice,
)

if TYPE_CHECKING:
    from torch import Tensor

ROWS = "rows"  # float32 [L, H, w, n]: what the prompt's last queries looked at, while it is computed


@register("truncation", "snapkv")
@dataclass
class SnapKV(AttentionTruncation):
    """Li et al., "SnapKV: LLM knows what you are looking for before generation", NeurIPS 2024, section 4.

    At the end of a prompt the probabilities that its last ``window`` queries give each earlier key are added up and
    pooled over ``kernel`` neighbours (``pooling``: ``avg`` or ``max``); the highest stay, and the window. While
    decoding the cache grows. This is the official ``SnapKVCluster``: softmax over all keys; the window's own keys do
    not take part in the pooling; its edges see zeros, which count in the average, so that both ends are damped.
    Official defaults: a cache of 2048, window 32, kernel 5, avg; LongBench files: kernel 7, max.

    Deviations: one choice per KV head, its query heads combined by ``group`` after the pooling as in kvpress (official:
    per query head, keys repeated; the same where each has its own KV head). Nothing is cut while the cache is within
    the budget (official: from the budget on; the same tokens). In later turns, for which nothing is published, the
    turn's last queries, ``window`` at most, choose among all that is cached, the last ``window`` tokens stay, and
    neighbours in the cache are pooled. With ``between_chunks`` the last queries of each chunk choose.
    """

    window: int = 32
    kernel: int = 5
    pooling: Literal["avg", "max"] = "avg"

    while_decoding: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("pooling", self.pooling, "avg", "max")
        require_at_least(self, 1, "window", "kernel")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; it must be odd")
        self._require_more_than(self.window, "window")

    @property
    def needs(self) -> Needs:
        return Needs(rows=self.window, decoding=False)

    def least(self, tokens: int) -> int:
        return min(self.window, tokens)

    def observe(self, view: CacheView) -> None:
        """Keep the prompt's last ``window`` rows: a chunk may have fewer."""
        if view.stage == "decode":
            return
        import torch

        rows, earlier = view.rows, view.state.get(ROWS)
        if earlier is not None and rows.shape[2] < self.window:
            rows = torch.cat((earlier, rows), dim=2)[:, :, -self.window :]
        view.state[ROWS] = rows

    def keep(self, view: CacheView) -> Tensor | None:
        chosen = super().keep(view)
        if view.stage == "prompt":
            view.state.pop(ROWS, None)
        return chosen

    def protected(self, view: CacheView) -> Tensor:
        return newest_tokens(view, self.window)

    def score(self, view: CacheView) -> Tensor:
        """[L, G, n]; what it says of the window does not count."""
        order = oldest_first(view.positions)
        candidates = ((view.positions >= 0) & ~self.protected(view)).gather(-1, order)
        per_head = view.state[ROWS].sum(dim=2)
        share = per_head.shape[1] // order.shape[1]
        ordered = per_head.gather(-1, order.repeat_interleave(share, dim=1))
        pooled = self._pooled(ordered * candidates.repeat_interleave(share, dim=1))
        return in_slots(view.grouped(pooled, self.group), order)

    def _pooled(self, ordered: Tensor) -> Tensor:
        from torch.nn import functional

        pool = functional.avg_pool1d if self.pooling == "avg" else functional.max_pool1d
        return pool(ordered.flatten(0, 1), self.kernel, stride=1, padding=self.kernel // 2).view(ordered.shape)
