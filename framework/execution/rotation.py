"""The rotation of a model's queries by itself: forwards for policies, backwards for what they watch."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .attention import CONTEXT, AttentionOptions
from .models import LoadedModel
from .rotary import Unrotated

PROBE_TOKENS, FARTHEST = 16, 4096  # the probe's tokens, and the last place that they take


@dataclass(frozen=True, slots=True)
class ModelRotation:
    """Implements ``policy.Rotation`` with the model's own rotary embedding (scaling and partial rotary included).

    Attributes
    ----------
    rotary: the module that gives cos and sin. kinds: the layer type that it wants to know of each layer, or None.
    rotates: of each layer, whether it rotates at all.
    pairs: what is rotated together: False: the halves of the rotated channels; True: neighbours.
    """

    rotary: nn.Module
    kinds: tuple[str | None, ...]
    rotates: tuple[bool, ...]
    pairs: bool

    def turned(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """See ``policy.Rotation``."""
        return self._turn(vectors, *self._tables(positions.to(vectors.device)))

    def averaged(self, vectors: Tensor, first: int, count: int) -> Tensor:
        """See ``policy.Rotation``."""
        cos, sin = self._tables(torch.arange(first, first + count, device=vectors.device))
        return self._turn(vectors, cos.mean(dim=1, keepdim=True), sin.mean(dim=1, keepdim=True))

    def undone(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """What :meth:`turned` made ``vectors``, float32 [L, heads, n, head_dim], of. A factor in cos and sin (YaRN's)
        is taken out with the angle."""
        cos, sin = self._tables(positions.to(vectors.device))
        square = cos.square() + sin.square()
        return self._turn(vectors, cos / square, -sin / square)

    def _turn(self, vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """By cos and sin float32 [L, n, rotary_dim / 2]."""
        dim, cos, sin = 2 * cos.shape[-1], cos[:, None], sin[:, None]
        turning, rest = vectors[..., :dim], vectors[..., dim:]
        if self.pairs:
            low, high = turning[..., 0::2], turning[..., 1::2]
            turned = torch.stack((low * cos - high * sin, high * cos + low * sin), dim=-1).flatten(-2)
        else:
            low, high = turning.chunk(2, dim=-1)
            turned = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
        return turned if not rest.shape[-1] else torch.cat((turned, rest), dim=-1)

    def _tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of each pair, float32 [L, n, rotary_dim / 2]."""
        by_kind = {kind: self._table(kind, positions) for kind in set(self.kinds)}
        still = torch.ones_like(by_kind[self.kinds[0]][0]), torch.zeros_like(by_kind[self.kinds[0]][0])
        layers = [by_kind[kind] if does else still for kind, does in zip(self.kinds, self.rotates, strict=True)]
        cos, sin = (torch.stack([layer[which] for layer in layers]) for which in (0, 1))
        return cos, sin

    def _table(self, kind: str | None, positions: Tensor) -> tuple[Tensor, Tensor]:
        like = torch.empty(0, dtype=torch.float32, device=next(self.rotary.buffers()).device)
        extra = () if kind is None else (kind,)
        tables = self.rotary(like, positions[None].to(like.device), *extra)
        cos, sin = (_of_pairs(table[0]).to(positions.device) for table in tables)
        return cos, sin


def rotation_of(model: LoadedModel) -> ModelRotation | None:
    """The rotation of ``model``'s queries; None if it has no rotary embedding.

    Found out by running a few tokens with and without it: a layer may have none, and what is rotated together differs.

    Raises
    ------
    ValueError
        If some of its layers rotate in another way than any that is known.
    """
    found = [(name, m) for name, m in model.module.named_modules() if type(m).__name__.endswith("RotaryEmbedding")]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(
            f"un-rotated queries need a model with one rotary embedding; {model.shape.name!r} has {len(found)}"
        )
    name, rotary = found[0]
    last = min(model.shape.max_positions, FARTHEST) - 1
    device = next(model.module.parameters()).device
    positions = torch.linspace(0, last, min(PROBE_TOKENS, last + 1), device=device).long()
    true = _probed(model.module, model, positions)
    by_type = bool(getattr(rotary, "layer_types", None))
    kinds = tuple(true.kinds[i] if by_type else None for i in range(model.shape.num_layers))
    everywhere = ModelRotation(rotary, kinds, (True,) * len(kinds), False)
    width = 2 * everywhere._table(kinds[0], positions)[0].shape[-1]
    still = _probed(_without(model.module, name, width), model, positions)
    for pairs in (False, True):
        turned = ModelRotation(rotary, kinds, everywhere.rotates, pairs).turned(still.stacked(), positions)
        as_they_are, as_turned = (_alike(true.stacked(), other) for other in (still.stacked(), turned))
        if all(a or b for a, b in zip(as_they_are, as_turned, strict=True)):
            return ModelRotation(rotary, kinds, tuple(not same for same in as_they_are), pairs)
    raise ValueError(f"some layers of {model.shape.name!r} rotate their queries in a way of their own")


@dataclass(slots=True)
class _Probe:
    """The queries of each layer, float32 [heads, tokens, head_dim]. Attention gives nothing, whatever the rotation."""

    queries: dict[int, Tensor] = field(default_factory=dict)
    kinds: dict[int, str | None] = field(default_factory=dict)

    def attend(self, layer: Any, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """Note the queries."""
        self.queries[layer.layer_idx] = query.transpose(0, 1).float()
        self.kinds[layer.layer_idx] = getattr(layer, "layer_type", None)
        return torch.zeros_like(query)

    def stacked(self) -> Tensor:
        """[L, heads, tokens, head_dim]."""
        return torch.stack([self.queries[i] for i in range(len(self.queries))])


@torch.inference_mode()
def _probed(module: nn.Module, model: LoadedModel, positions: Tensor) -> _Probe:
    probe = _Probe()
    ids = torch.arange(len(positions), device=positions.device) % model.shape.vocab_size
    module(input_ids=ids[None], position_ids=positions[None], use_cache=False, **{CONTEXT: probe})
    return probe


def _without(module: nn.Module, name: str, rotary_dim: int) -> nn.Module:
    """``module`` with the same weights, that does not rotate."""
    other = copy.deepcopy(module, {id(w): w for w in (*module.parameters(), *module.buffers())})
    other.set_submodule(name, Unrotated(rotary_dim))
    return other


def _alike(true: Tensor, other: Tensor) -> list[bool]:
    """Of each layer: equal but for rounding in the model's dtype."""
    error = (true - other).abs().flatten(1).amax(dim=1)
    return (error <= 0.02 * true.abs().flatten(1).amax(dim=1)).tolist()


def _of_pairs(table: Tensor) -> Tensor:
    """[n, rotary_dim] with halves or neighbours repeated -> [n, rotary_dim / 2]."""
    half = table.shape[-1] // 2
    return table[..., :half] if torch.equal(table[..., :half], table[..., half:]) else table[..., 0::2]
