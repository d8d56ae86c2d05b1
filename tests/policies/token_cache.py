"""A cache in the plainest way: dense logits, one softmax per query over what is cached, and a policy that decides.

It drives token-level policies as an executor does, with chunks and decode steps, but knows no pages, and puts slots in
any order it likes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvarena.framework.policy import Grouping, Needs, Stage, TokenTruncation

Kept = list[list[list[int]]]  # positions of each plane, ascending


def values_of(keys: Tensor) -> Tensor:
    """Values [..., D] that go with keys, of other norms."""
    return keys.cumsum(dim=-1)


@dataclass
class View:
    """``CacheView`` over tensors; refuses what the policy did not ask for."""

    conversation: int
    stage: Stage
    tokens: int
    queries: int
    positions: Tensor
    state: dict[str, Tensor]
    needs: Needs
    probabilities: Tensor  # [L, H, queries, n]
    cached_keys: Tensor
    later: Callable[[], Tensor]
    asked: Tensor | None = None  # [L, H, queries, D]
    normalisers: Tensor | None = None  # [L, H, queries]
    notes: dict[str, Tensor] = field(default_factory=dict)

    def _watched(self, asked: bool) -> None:
        assert asked, "not asked for"
        assert self.needs.decoding or self.stage != "decode", "decoding is not watched"

    @property
    def column_sums(self) -> Tensor:
        self._watched(self.needs.column_sums)
        return self.probabilities.sum(dim=2)

    @property
    def rows(self) -> Tensor:
        self._watched(self.needs.rows > 0)
        return self.probabilities[:, :, -min(self.needs.rows, self.queries) :]

    @property
    def log_sum_exp(self) -> Tensor:
        self._watched(self.needs.log_sum_exp)
        assert self.normalisers is not None
        return self.normalisers

    @property
    def unrotated_queries(self) -> Tensor:
        self._watched(self.needs.queries > 0)
        assert self.asked is not None
        return self.asked[:, :, -min(self.needs.queries, self.queries) :]

    def keys(self) -> Tensor:
        return self.cached_keys

    def values(self) -> Tensor:
        return values_of(self.cached_keys)

    def grouped(self, per_head: Tensor, how: Grouping) -> Tensor:
        layers, heads = self.positions.shape[:2]
        apart = per_head.view(layers, heads, -1, *per_head.shape[2:])
        return {"mean": apart.mean(2), "max": apart.amax(2), "sum": apart.sum(2)}[how]

    def future(self) -> Tensor:
        return self.later()


@dataclass
class TokenCache:
    """The cache of one context under ``policy``.

    ``logits``: [L, H, T, T] of query and key positions. ``keys``: [L, G, T, D] (zeros if left out). ``shuffle``: slots
    are put in another order after every step, each plane in its own, as this seed says. ``queries``: [L, H, T, D],
    un-rotated; if left out, other numbers of the same query's logits (nothing is computed from them here).
    """

    policy: TokenTruncation
    logits: Tensor
    kv_heads: int
    keys: Tensor | None = None
    shuffle: int | None = None
    tokens: int = 0
    positions: Tensor = field(init=False)
    state: dict[str, Tensor] = field(default_factory=dict)
    queries: Tensor | None = None
    notes: dict[str, Tensor] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)  # [L, H, T] probabilities of each query so far, by position

    def __post_init__(self) -> None:
        self.positions = torch.empty(self.logits.shape[0], self.kv_heads, 0, dtype=torch.int64)
        if self.keys is None:
            self.keys = self.logits.new_zeros(self.logits.shape[0], self.kv_heads, self.logits.shape[-1], 1)

    @property
    def share(self) -> int:
        return self.logits.shape[1] // self.kv_heads

    def step(self, queries: int, stage: Stage) -> Kept:
        """Compute the next ``queries`` tokens, let the policy decide, and say what is left."""
        new = torch.arange(self.tokens, self.tokens + queries).expand(*self.positions.shape[:2], queries)
        self.positions = torch.cat((self.positions, new), dim=-1)
        for name, held in self.state.items():
            self.state[name] = torch.cat((held, held.new_zeros(*held.shape[:-1], queries)), dim=-1)
        self.tokens += queries
        view = self._view(queries, stage)
        self.policy.observe(view)
        keep = self.policy.keep(view)
        self._cut(self.positions >= 0 if keep is None else keep)
        return self.kept()

    def _view(self, queries: int, stage: Stage) -> View:
        probabilities, normalisers = self._attend(queries)
        assert self.keys is not None
        index = self.positions.clamp(min=0).unsqueeze(-1).expand(*self.positions.shape, self.keys.shape[-1])
        return View(
            0,
            stage,
            self.tokens,
            queries,
            self.positions,
            self.state,
            self.policy.needs,
            probabilities,
            self.keys.gather(2, index),
            self._later,
            self._asked(queries),
            normalisers,
            self.notes,
        )

    def _asked(self, queries: int) -> Tensor:
        assert self.keys is not None
        asking = slice(self.tokens - queries, self.tokens)
        return (self.logits[..., : self.keys.shape[-1]] if self.queries is None else self.queries)[:, :, asking]

    def _later(self) -> Tensor:
        whole = full_attention(self.logits)[:, :, self.tokens :].sum(dim=2)  # [L, H, T]
        return whole.gather(-1, self._by_head().clamp(min=0))

    def _by_head(self) -> Tensor:
        return self.positions.repeat_interleave(self.share, dim=1)

    def _attend(self, queries: int) -> tuple[Tensor, Tensor]:
        """Probabilities [L, H, queries, n], and the log-sum-exp of each query."""
        asking = torch.arange(self.tokens - queries, self.tokens)
        where = self._by_head().unsqueeze(2)  # [L, H, 1, n]
        rows = self.logits[:, :, asking]
        cached = rows.gather(-1, where.clamp(min=0).expand(*rows.shape[:3], where.shape[-1]))
        seen = (where >= 0) & (where <= asking.view(1, 1, -1, 1))
        scores = cached.masked_fill(~seen, -math.inf)
        probabilities = scores.softmax(dim=-1)
        by_position = torch.zeros_like(rows)
        by_position.scatter_add_(-1, where.clamp(min=0).expand(probabilities.shape), probabilities)
        self.outputs += by_position.unbind(2)
        return probabilities, scores.logsumexp(dim=-1)

    def _cut(self, keep: Tensor) -> None:
        assert keep.dtype == torch.bool and keep.shape == self.positions.shape
        assert not (keep & (self.positions < 0)).any(), "an empty slot is no token"
        counts = keep.sum(dim=-1)
        assert (counts > 0).all(), "a plane is empty"
        order = keep.int().argsort(dim=-1, descending=True, stable=True)[..., : int(counts.max())]
        if self.shuffle is not None:
            self.shuffle += 1
            lots = torch.rand(order.shape, generator=torch.Generator().manual_seed(self.shuffle))
            order = order.gather(-1, lots.argsort(-1))
        held = keep.gather(-1, order)
        self.positions = self.positions.gather(-1, order).masked_fill(~held, -1)
        for name, values in self.state.items():
            per_head = values.shape[1] // self.kv_heads
            index, there = (t.repeat_interleave(per_head, dim=1) for t in (order, held))
            shape = (*index.shape[:2], *(1,) * (values.dim() - 3), index.shape[-1])
            index, there = index.view(shape), there.view(shape)
            self.state[name] = values.gather(-1, index.expand(*values.shape[:-1], -1)).masked_fill(~there, 0)

    def kept(self) -> Kept:
        return [[sorted(p for p in plane if p >= 0) for plane in layer] for layer in self.positions.tolist()]

    def run(self, blocks: Sequence[tuple[int, Stage]]) -> list[Kept]:
        """What is left after each of ``blocks``."""
        return [self.step(queries, stage) for queries, stage in blocks]


def full_attention(logits: Tensor) -> Tensor:
    """[L, H, T, T]: causal, nothing left out."""
    causal = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    return logits.masked_fill(~causal, -math.inf).softmax(dim=-1)


def prompt_and_replies(prompt: int, replies: int, chunk: int | None = None) -> list[tuple[int, Stage]]:
    """The steps of a prompt, whole or in chunks, and of ``replies`` decoded tokens."""
    size = chunk or prompt
    sizes = [min(size, prompt - start) for start in range(0, prompt, size)]
    stages: list[Stage] = ["chunk"] * (len(sizes) - 1) + ["prompt"]
    return [*zip(sizes, stages, strict=True), *[(1, "decode")] * replies]


def random_logits(seed: int, layers: int, heads: int, tokens: int, spread: float = 2.0) -> Tensor:
    """[L, H, T, T], float64."""
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(layers, heads, tokens, tokens, generator=generator, dtype=torch.float64)


def random_keys(seed: int, layers: int, kv_heads: int, tokens: int, dim: int = 4) -> Tensor:
    """[L, G, T, D], float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layers, kv_heads, tokens, dim, generator=generator, dtype=torch.float64)
