"""What one pass over the cases leaves of every predicted token: the distribution, the attention, what was cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..execution.contract import Segment

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is recorded beside the distributions. ``top_keys``: so many keys of each query head that get most attention
    (a reference); 0: none. ``held``: which tokens are cached (a policy's run). ``rows``: all of the attention, for
    an oracle."""

    attention: bool = False
    top_keys: int = 0
    held: bool = False
    rows: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """What a context holds when a token is predicted, that token's own query included.

    Attributes
    ----------
    positions: int64 [L, G, n], true positions of cached tokens; -1: none. None: all of them.
    kv_bytes: of the cached K/V, as stored. state_bytes: of what the policy keeps beside.
    """

    positions: Tensor | None
    kv_bytes: float
    state_bytes: float


@dataclass(frozen=True, slots=True)
class Step:
    """A token was predicted.

    Attributes
    ----------
    position: of the query, in the whole conversation.
    logits: [vocab_size], in the model's own dtype.
    outputs: float32 [L, H, head_dim], of each layer's attention, or None.
    top_keys: int64 [L, H, k], positions of the keys that get most of the attention, or None; k may be less than asked
        for in a short context.
    held: None where it was not asked for.
    """

    position: int
    logits: Tensor
    outputs: Tensor | None
    top_keys: Tensor | None
    held: Held | None


@dataclass(frozen=True, slots=True)
class Rows:
    """The attention of consecutive queries in one layer: float32 [H, queries, keys], the first query at ``start``."""

    layer: int
    start: int
    probabilities: Tensor


Holding = Callable[[Segment], Held]
Attention = Callable[[int, Segment, "Tensor", int], "Tensor"]


@dataclass(slots=True)
class Recording:
    """Listens to an executor through one pass; what it keeps is by request.

    Attributes
    ----------
    holding: what a segment's context holds, asked before the step lets go of anything; needed for ``held``.
    attention: the probabilities of a segment's last queries in a layer: (layer, segment, query [length, H, head_dim],
        how many) -> [H, many, keys]; needed for ``top_keys`` and ``rows``.
    steps: of each request, in order; they are as many as tokens were predicted.
    rows: of each request, in any order.
    """

    wanted: Wanted
    holding: Holding | None = None
    attention: Attention | None = None
    steps: dict[int, list[Step]] = field(default_factory=dict)
    rows: dict[int, list[Rows]] = field(default_factory=dict)
    _outputs: list[Tensor] = field(default_factory=list)
    _top_keys: list[list[Tensor]] = field(default_factory=list)
    _held: list[Held] = field(default_factory=list)

    def attended(self, layer: int, segments: Sequence[Segment], query: Tensor, out: Tensor) -> None:
        """A layer attended: ``query`` and ``out`` [num_tokens, H, head_dim] of the whole batch."""
        if layer == 0:
            self._begin(segments)
        ends = _ends(segments)
        sampled = [i for i, segment in enumerate(segments) if segment.sample]
        if self.wanted.attention and sampled:
            self._outputs.append(out[[ends[i] - 1 for i in sampled]].float())
        if self.wanted.top_keys:
            queries = [query[ends[i] - segments[i].length : ends[i]] for i in sampled]
            self._top_keys.append([self._top(layer, segments[i], q) for i, q in zip(sampled, queries, strict=True)])
        if self.wanted.rows:
            for end, segment in zip(ends, segments, strict=True):
                self._note_rows(layer, segment, query[end - segment.length : end])

    def chose(self, segments: Sequence[Segment], logits: Tensor) -> None:
        """The batch is done: ``logits`` [sampled segments, vocab_size]."""
        sampled = [segment for segment in segments if segment.sample]
        for i, segment in enumerate(sampled):
            found = Step(
                segment.position + segment.length - 1,
                logits[i].clone(),
                _stacked([outputs[i] for outputs in self._outputs]),
                _stacked([keys[i] for keys in self._top_keys]),
                self._held[i] if self._held else None,
            )
            self.steps.setdefault(segment.request, []).append(found)
        self._clear()

    def _begin(self, segments: Sequence[Segment]) -> None:
        self._clear()
        if self.wanted.held:
            assert self.holding is not None
            self._held = [self.holding(segment) for segment in segments if segment.sample]

    def _clear(self) -> None:
        self._outputs, self._top_keys, self._held = [], [], []

    def _top(self, layer: int, segment: Segment, query: Tensor) -> Tensor:
        assert self.attention is not None
        found = self.attention(layer, segment, query, 1)[:, 0]
        return found.topk(min(self.wanted.top_keys, found.shape[-1]), dim=-1).indices

    def _note_rows(self, layer: int, segment: Segment, query: Tensor) -> None:
        assert self.attention is not None
        found = self.attention(layer, segment, query, segment.length)
        self.rows.setdefault(segment.request, []).append(Rows(layer, segment.position, found))


def full_attention(rows: Sequence[Rows], tokens: int) -> Tensor:
    """All the attention of one context: float32 [L, H, tokens, tokens], 0 above the diagonal.

    Raises
    ------
    ValueError
        If a query's row is missing.
    """
    import torch

    num_layers = 1 + max(part.layer for part in rows)
    whole = torch.zeros(num_layers, rows[0].probabilities.shape[0], tokens, tokens)
    known = torch.zeros(num_layers, tokens, dtype=torch.bool)
    for part in rows:
        stop = part.start + part.probabilities.shape[1]
        whole[part.layer, :, part.start : stop, : part.probabilities.shape[2]] = part.probabilities
        known[part.layer, part.start : stop] = True
    if not bool(known[:, :-1].all()):  # the last reply's last token is never a query
        raise ValueError(f"the attention of {int((~known).sum())} queries of {tokens} was not seen")
    return whole


def _ends(segments: Sequence[Segment]) -> list[int]:
    """Where the tokens of each segment end in the batch."""
    ends, end = [], 0
    for segment in segments:
        end += segment.length
        ends.append(end)
    return ends


def _stacked(parts: Sequence[Tensor]) -> Tensor | None:
    import torch

    return torch.stack(list(parts)) if parts else None
