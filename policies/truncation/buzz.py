"""Of every few tokens the heaviest stays, beside the first and the newest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...framework.policy import (
    AccumulatedAttention,
    CacheShape,
    CacheView,
    Stage,
    in_slots,
    oldest_first,
    register,
    require_at_least,
)

if TYPE_CHECKING:
    from torch import Tensor

SAMPLED = "sampled"  # bool [L, G, n]: survived an earlier cut, and is neither sink nor window


@register("truncation", "buzz")
@dataclass
class Buzz(AccumulatedAttention):
    """Zhao et al., "BUZZ: beehive-structured sparse KV cache with segmented heavy hitters", 2024, section 3.

    The cache is ``sink`` first tokens, an older sample, new tokens, and the last ``window``. When the sample and the
    new tokens are more than the threshold, the sample is thinned to every s'-th token from its first on, with s' =
    (``stride`` + 1) // 2, and the new tokens are divided into cells of ``stride`` (the last may be shorter), of which
    the token that was given the most attention stays. Both are the sample then. Sums begin anew, at 0, for the sinks
    and the thinned sample; those of the fresh ones and of the window go on. The size runs in a saw-tooth.

    The budget is the most that is ever held, sink + threshold + window; the default gives the official run's 4, 400 and
    160 with stride 5 (class defaults 4, 180, 4 and 3). This is the official ``BuzzKVCacheWithAccumulation``;
    ``positions`` ``cache`` as published (``backend.decoupled``).

    Deviations: query heads that share a KV head are combined by ``group``; of equals in a cell the oldest stays.
    """

    positions: Literal["true", "cache"] = "cache"
    budget_tokens: int | None = 564
    budget_ratio: float | None = None
    sink: int = 4
    window: int = 160
    stride: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 0, "sink")
        require_at_least(self, 1, "window", "stride")
        self._require_more_than(self.sink + self.window, "sink + window")

    @property
    def thinning(self) -> int:
        """s': one of so many older tokens stays."""
        return (self.stride + 1) // 2

    def least(self, tokens: int) -> int:
        return self.sink + self.window + 1

    def state_bytes(self, shape: CacheShape) -> float:
        return super().state_bytes(shape) + 1

    def select(self, view: CacheView, budget: int) -> Tensor:
        import torch

        order = oldest_first(view.positions)
        held = (view.positions >= 0).sum(dim=-1, keepdim=True)  # [L, G, 1]
        sampled = view.state.get(SAMPLED)
        sample_end = self.sink if sampled is None else self.sink + sampled.sum(dim=-1, keepdim=True)
        rank = torch.arange(order.shape[-1], device=order.device).expand(order.shape)
        middle = (rank >= self.sink) & (rank < held - self.window)
        new = middle & (rank >= sample_end)
        thinned = middle & ~new & ((rank - self.sink) % self.thinning == 0)
        attention = self.score(view).gather(-1, order)
        fresh = new & _first_of_the_highest(attention, ((rank - sample_end) // self.stride).clamp(min=0), new)
        view.state[SAMPLED] = in_slots(thinned | fresh, order)
        begun_anew = in_slots((rank < self.sink) | thinned, order)
        share = view.state["attention"].shape[1] // order.shape[1]
        view.state["attention"] = view.state["attention"] * ~begun_anew.repeat_interleave(share, dim=1)
        return in_slots(thinned | fresh | (rank < self.sink) | ((rank >= held - self.window) & (rank < held)), order)

    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Stage) -> float:
        """Exact for the first cut; later ones take the sample to be as large as cuts while decoding make it."""
        budget = max(self.budget(tokens), self.least(tokens))
        if not self.cuts(stage) or cached_tokens <= budget:
            return cached_tokens
        middle = cached_tokens - self.sink - self.window
        sample = 0 if cached_tokens == tokens else min(middle, self._lasting_sample(budget - self.sink - self.window))
        return self.sink + self.window + -(-sample // self.thinning) - (-(middle - sample) // self.stride)

    def _lasting_sample(self, threshold: int) -> int:
        """The size of the sample that cuts at ``threshold`` lead to."""
        sample = 0
        for _ in range(64):
            sample = -(-sample // self.thinning) - (-(threshold + 1 - sample) // self.stride)
        return sample


def _first_of_the_highest(score: Tensor, cell: Tensor, among: Tensor) -> Tensor:
    """Bool [..., n]: the first token of each cell whose score is its highest; only those ``among`` count."""
    import torch

    none = score.new_full(score.shape, -1.0)
    cells = none.scatter_reduce(-1, cell, score.where(among, none), "amax")
    highest = among & (score == cells.gather(-1, cell))
    rank = torch.arange(score.shape[-1], device=score.device).expand(score.shape)
    last = rank.new_full(rank.shape, score.shape[-1])
    first = last.scatter_reduce(-1, cell, rank.where(highest, last), "amin")
    return highest & (rank == first.gather(-1, cell))
