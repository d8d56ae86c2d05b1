"""Token-level truncation: which cached tokens of a context stay, per layer and KV head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from .families import Truncation

if TYPE_CHECKING:
    from torch import Tensor

Stage = Literal["chunk", "prompt", "decode"]
Grouping = Literal["mean", "max", "sum"]
ALL_QUERIES = 1 << 31  # more than any step has


@dataclass(frozen=True, slots=True)
class Needs:
    """What a policy wants to know of the attention of each step.

    ``column_sums``: for each key, the probabilities that the step's queries gave it, added up. ``rows``: the
    probabilities of the step's last so many queries. ``log_sum_exp``: what each query's scores are normalised by. These
    cost a second pass over the scores; nothing is computed that is not asked for. ``queries``: the step's last so many
    queries themselves, before rotation; ``ALL_QUERIES``: every one. They take as much memory as the step's keys, times
    the query heads that share a KV head. ``decoding`` False: only the steps of prompts are watched.

    Raises
    ------
    ValueError
        If a number is negative.
    """

    column_sums: bool = False
    rows: int = 0
    log_sum_exp: bool = False
    queries: int = 0
    decoding: bool = True

    def __post_init__(self) -> None:
        for name, number in (("rows", self.rows), ("queries", self.queries)):
            if number < 0:
                raise ValueError(f"needs.{name} is {number}; it must be at least 0")

    @property
    def scores(self) -> bool:
        """Something has to be computed from the scores."""
        return self.column_sums or self.rows > 0 or self.log_sum_exp

    @property
    def anything(self) -> bool:
        """Attention has to be watched at all."""
        return self.scores or self.queries > 0


class Rotation(Protocol):
    """The rotary embedding of a model, all layers at once; layers that do not rotate leave vectors as they are."""

    def turned(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Float32 [L, heads, n, head_dim], un-rotated: each vector rotated for its place ``positions``, int64 [n]."""
        ...

    def averaged(self, vectors: Tensor, first: int, count: int) -> Tensor:
        """As :meth:`turned`, but each vector becomes the mean of what it is at the places ``first`` .. ``first`` +
        ``count`` - 1. Linear in ``vectors``."""
        ...


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Of a model's cache: ``layers``, query ``heads``, ``kv_heads``; ``plane_bytes``: the K and V of one token in one
    plane (layer x KV head). ``rotation``: told to policies that need un-rotated queries; None: the model has none, or
    nobody computes (simulated backend)."""

    layers: int
    heads: int
    kv_heads: int
    plane_bytes: int
    rotation: Rotation | None = None


class CacheView(Protocol):
    """The cache of one context after a step, as a token-level policy sees it: all layers at once.

    L layers, H query heads, G KV heads (H / G query heads share one), n slots: the most that a plane (layer x KV head)
    holds. Slots are in no particular order unless the policy's positions are ``cache``, and then ascending. A plane
    with fewer than n tokens is padded: its positions are -1 there, and what is said of such slots is ignored.

    Attributes
    ----------
    conversation: whose context it is.
    stage: ``chunk``: after a part of a prompt that goes on; ``prompt``: after its end; ``decode``: after a token.
    tokens: of the context so far, kept or not; the newest has position ``tokens`` - 1.
    queries: tokens that this step computed: the last ones.
    positions: int64 [L, G, n], the tokens' places in the context.
    state: float32 or bool tensors [..., n] of the policy's own, [L, G, ..., n] or [L, H, ..., n]; slots that are new
        since the last step hold 0, and what leaves the cache leaves them too.
    notes: tensors of the policy's own, of any shape, that belong to the context as a whole; they stay as they are.
    """

    conversation: int
    stage: Stage
    tokens: int
    queries: int
    positions: Tensor
    state: dict[str, Tensor]
    notes: dict[str, Tensor]

    @property
    def column_sums(self) -> Tensor:
        """float32 [L, H, n]: see ``Needs.column_sums``, over this step's queries."""
        ...

    @property
    def rows(self) -> Tensor:
        """float32 [L, H, w, n]: probabilities of the step's last w = min(``Needs.rows``, queries) queries, oldest
        first; 0 where a query does not see a key."""
        ...

    @property
    def log_sum_exp(self) -> Tensor:
        """float32 [L, H, queries]: for each of this step's queries, the natural logarithm of the sum of exp(score) over
        all cached keys that it sees; exp(score - this) is a probability."""
        ...

    @property
    def unrotated_queries(self) -> Tensor:
        """float32 [L, H, w, head_dim]: the step's last w = min(``Needs.queries``, queries) queries, oldest first, as
        they are before the rotary embedding (after a norm); those of a model without one as they are. Not scaled."""
        ...

    def keys(self) -> Tensor:
        """Float32 [L, G, n, head_dim], as cached: rotated at their true positions, or not at all (``cache``)."""
        ...

    def values(self) -> Tensor:
        """Float32 [L, G, n, head_dim]."""
        ...

    def grouped(self, per_head: Tensor, how: Grouping) -> Tensor:
        """[L, H, ...] -> [L, G, ...]: the query heads that share a KV head become one."""
        ...

    def future(self) -> Tensor:
        """float32 [L, H, n]: the probabilities that all later queries give each key under the full cache; for oracles,
        where a quality run knows them.

        Raises
        ------
        ValueError
            Where nobody knows the future.
        """
        ...


class TokenTruncation(Truncation, ABC):
    """Decides after each step which tokens stay in the cache.

    K/V of a kept token never change. What leaves is gone: the context becomes its conversation's own, is kept across
    turns as it is, and if a page of it is lost the whole context is computed again.

    Attributes
    ----------
    positions: ``true``: keys keep the rotation of their place in the context, and queries have theirs; ``cache``: keys
        are cached without rotation, and keys and queries are rotated by their place in the cache
        (``backend.decoupled``).
    """

    lossless: ClassVar[bool] = False
    positions: Literal["true", "cache"] = "true"

    @property
    def keeps(self) -> bool:
        return True

    def first_kept(self, history_tokens: int, needed_tokens: int, limit: int) -> int:
        return 0

    def bind(self, shape: CacheShape) -> None:
        """Learn what the model's cache looks like. Called once, before anything runs."""

    @property
    def needs(self) -> Needs:
        """What has to be known of the attention of each step."""
        return Needs()

    def observe(self, view: CacheView) -> None:
        """Take note, in ``view.state``, of a step. Called once after each step, before :meth:`keep`."""

    @abstractmethod
    def keep(self, view: CacheView) -> Tensor | None:
        """Bool [L, G, n], True for the slots that stay; None: all of them. At least one of each plane must stay."""

    @abstractmethod
    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Stage) -> float:
        """How many tokens a plane holds on average after :meth:`keep`, of ``cached_tokens`` in a context of ``tokens``;
        what a simulation, which has no attention, goes by. At most ``cached_tokens``."""


class Selection(Truncation, ABC):
    """Keeps all tokens, but lets each step attend to some pages only (Quest); costs time, frees no memory."""

    lossless: ClassVar[bool] = False

    def first_kept(self, history_tokens: int, needed_tokens: int, limit: int) -> int:
        return 0

    @abstractmethod
    def pages(self, layer: int, query: Tensor, low: Tensor, high: Tensor, tokens: int, page_size: int) -> Tensor | None:
        """Which pages one decoding query attends to in ``layer``; None: all.

        Parameters
        ----------
        query: float32 [H, head_dim], rotated as the keys are.
        low, high: float32 [pages, G, head_dim], the least and largest value of each key channel in each page.
        tokens: of the context, the query's own included; the last page may be filled in part.

        Returns
        -------
        int64 [H, selected], ascending; the last page, which holds the query's own key, is always added.
        """
