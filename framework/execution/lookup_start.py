"""First weights from which a small Llama learns within minutes to look up what followed a token before.

Retrieval from context needs two attention layers in concert: one that tells each position which token came before it,
and one that looks for the positions that came after the token asked for. From independent random weights a small model
sits on a plateau until both happen to form. Starting weights with the structure of trained ones (mimetic
initialisation, Trockman and Kolter, arXiv 2305.09828) shorten that: here the first layer begins to look one position
back, the second to match its queries with what the first one wrote, and to copy. All of it is trained on.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

_BACK = 4.0  # strength of the first layer's look at the previous position
_MATCH = 1.5  # of the second layer's match
_FAST = 4  # rotary pairs that tell neighbouring positions apart
_TURNING = 6  # rotary pairs that turn too fast to match over long distances


@torch.no_grad()
def start_lookup(module: PreTrainedModel) -> None:
    """Give the first two layers of a Llama with ``attention_bias`` and random weights such a start, in place.

    Raises
    ------
    ValueError
        If the model has fewer than two layers or no attention biases.
    """
    layers = module.get_decoder().layers
    first, second = layers[0].self_attn, layers[1].self_attn if len(layers) > 1 else None
    if second is None or first.q_proj.bias is None:
        raise ValueError("a start for look-ups needs a Llama of at least two layers with attention_bias")
    sizes = _Sizes(module.config)
    written = _look_back(first, sizes)
    _match_and_copy(second, sizes, written)


class _Sizes:
    def __init__(self, config: Any) -> None:
        self.hidden, self.head_dim = int(config.hidden_size), int(config.head_dim)
        self.heads, self.groups = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.embedding = float(config.initializer_range)
        half = torch.arange(self.head_dim // 2) / (self.head_dim // 2)
        self.turn: Tensor = config.rope_parameters["rope_theta"] ** -half  # radians per position of each pair

    def per_head(self, grouped: Tensor) -> Tensor:
        """[groups x head_dim, ...] -> [heads x head_dim, ...]: heads of a group get the same."""
        apart = grouped.view(self.groups, self.head_dim, *grouped.shape[1:])
        return apart.repeat_interleave(self.heads // self.groups, dim=0).flatten(0, 1)

    def random(self) -> Tensor:
        """[groups x head_dim, hidden], which keeps the size of a normed vector."""
        return torch.randn(self.groups * self.head_dim, self.hidden) / math.sqrt(self.hidden)


def _look_back(attention: Any, sizes: _Sizes) -> Tensor:
    """Biases that look one position back whatever the tokens are; the map [hidden, hidden] from a normed token to what
    the next position gets of it, up to its size."""
    half, fast = sizes.head_dim // 2, slice(0, _FAST)
    key, query = torch.zeros(sizes.head_dim), torch.zeros(sizes.head_dim)
    key[fast] = _BACK
    query[fast] = _BACK * torch.cos(sizes.turn[fast])
    query[half : half + _FAST] = -_BACK * torch.sin(sizes.turn[fast])
    attention.k_proj.bias.copy_(key.repeat(sizes.groups))
    attention.q_proj.bias.copy_(query.repeat(sizes.heads))
    value = sizes.random()
    out = torch.randn(value.shape[0], sizes.hidden) / math.sqrt(value.shape[0])
    attention.v_proj.weight.copy_(value)
    _write(attention, sizes, out, sizes.embedding)
    written: Tensor = out.T @ value
    return written


def _match_and_copy(attention: Any, sizes: _Sizes, written: Tensor) -> None:
    """Queries of a token meet keys of what the layer below wrote of the same token; values are copied to the output."""
    query = sizes.random().view(sizes.groups, 2, -1, sizes.hidden) * _MATCH
    query[:, :, :_TURNING] *= 0.1
    query = query.flatten(0, 2)
    attention.q_proj.weight.copy_(sizes.per_head(query))
    attention.k_proj.weight.copy_(query @ written.T)
    value = sizes.random()
    attention.v_proj.weight.copy_(value)
    _write(attention, sizes, value, sizes.embedding)


def _write(attention: Any, sizes: _Sizes, out: Tensor, size: float) -> None:
    """The output projection: ``out`` [groups x head_dim, hidden], shared out among the heads of each group."""
    attention.o_proj.weight.copy_(sizes.per_head(out).T * size * sizes.groups / sizes.heads)
