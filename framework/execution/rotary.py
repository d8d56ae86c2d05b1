"""Rotary embeddings taken out of a model: decoupled positions (CachedAttention, section 3.4).

The model's own rotary module is replaced by one that does not rotate; keys are cached as they are, and attention
rotates queries and keys at their logical positions with the tables of the true module (YaRN, Llama-3 scaling and
partial rotary included).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """cos and sin by position, float32 [max_positions, rotary_dim], halves repeated."""

    cos: Tensor
    sin: Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading ``rotary_dim`` entries of ``x`` [num_tokens, heads, head_dim], half split.

    ``cos``, ``sin``: [num_tokens, rotary_dim], float32; the rotation is computed in ``x``'s dtype, as the models do.
    """
    dim = cos.shape[-1]
    cos, sin = cos.to(x.dtype).unsqueeze(1), sin.to(x.dtype).unsqueeze(1)
    head = x[..., :dim]
    left, right = head[..., : dim // 2], head[..., dim // 2 :]
    rotated = head * cos + torch.cat((-right, left), dim=-1) * sin
    return rotated if dim == x.shape[-1] else torch.cat((rotated, x[..., dim:]), dim=-1)


class Unrotated(nn.Module):
    """Stands in for a rotary module: cos = 1, sin = 0."""

    def __init__(self, rotary_dim: int) -> None:
        super().__init__()
        self.rotary_dim = rotary_dim

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """One and zero, [1, num_tokens, rotary_dim], in the dtype of ``x``."""
        shape = (*position_ids.shape, self.rotary_dim)
        return x.new_ones(()).expand(shape), x.new_zeros(()).expand(shape)


def decouple(model: nn.Module, max_positions: int) -> Callable[[Any], RotaryTable]:
    """Replace the rotary module of ``model`` in place; returns the true table of each attention layer.

    Raises
    ------
    ValueError
        If the model has no rotary embedding, several, or one that is not half split.
    """
    found = [(name, m) for name, m in model.named_modules() if type(m).__name__.endswith("RotaryEmbedding")]
    if len(found) != 1:
        has = f"{type(model).__name__} has {len(found) or 'none'}"
        raise ValueError(f"decoupled positions need a model with one rotary embedding; {has}")
    name, rotary = found[0]
    kinds: list[str | None] = list(getattr(rotary, "layer_types", None) or [None])
    tables = {kind: _table(rotary, kind, max_positions, next(model.parameters()).device) for kind in kinds}
    model.set_submodule(name, Unrotated(tables[kinds[0]].cos.shape[-1]))
    if None in tables:
        return lambda layer: tables[None]
    return lambda layer: tables[getattr(layer, "layer_type", None)]


def _table(rotary: nn.Module, kind: str | None, max_positions: int, device: torch.device) -> RotaryTable:
    positions = torch.arange(max_positions, device=device)[None]
    extra = () if kind is None else (kind,)
    with torch.inference_mode():
        cos, sin = rotary(torch.empty(0, dtype=torch.float32, device=device), positions, *extra)
    half = cos.shape[-1] // 2
    if not (torch.equal(cos[..., :half], cos[..., half:]) and torch.equal(sin[..., :half], sin[..., half:])):
        raise ValueError(f"decoupled positions need a half-split rotary embedding; {type(rotary).__name__} is not")
    return RotaryTable(cos[0].contiguous(), sin[0].contiguous())
