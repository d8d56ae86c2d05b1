"""Paged attention inside Hugging Face models: the one module that touches transformers' attention interface.

A model loaded with ``attn_implementation=INTERFACE`` calls :func:`_forward` in every layer. The batch's context travels
as a keyword argument through the model's forward. No mask is registered under the name, so the model makes none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

from ...kernels.cache_write import write_pages
from ...kernels.paged_attention import paged_attention
from .lossy.forms import Attending, LayerCall
from .rotary import RotaryTable, rotate
from .sharing import StoredLayers
from .torch_transfer import LayerGate

INTERFACE = "kvarena_paged"
CONTEXT = "kvarena_context"  # the keyword that carries the context

# Arguments that change what attention means and that the paged one does not know.
_UNKNOWN = ("s_aux", "position_bias", "alibi", "head_mask", "cache")


class AttentionContext(Protocol):
    """What one forward pass carries to every layer."""

    def attend(self, layer: Any, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """Attention of the module ``layer``: query [num_tokens, num_heads, head_dim], key and value [num_tokens,
        num_kv_heads, head_dim]; returns the shape of ``query``."""
        ...


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What a layer asks for: softmax scale, sliding window in tokens (a query sees itself and ``window`` - 1 before),
    soft cap of the scores."""

    scale: float
    window: int | None
    softcap: float | None


@dataclass(frozen=True, slots=True)
class FormedPart:
    """The rows of a batch, int64, whose attention ``attending`` does."""

    rows: Tensor
    attending: Attending


@dataclass(slots=True)
class PagedContext:
    """One packed batch over the paged cache.

    ``page_table``, ``query_starts`` and ``positions`` are of the segments with plain attention.

    Attributes
    ----------
    pool: [num_pages, stored layers, 2, num_kv_heads, page_size, head_dim].
    page_table: int32 [num_segments, max_pages].
    query_starts: int32 [num_segments + 1].
    positions: int32 [num_segments].
    slots: int64 [num_tokens], where to write K/V; -1: nowhere.
    rotary: with decoupled positions, the true table of each layer; keys are then cached un-rotated.
    position_ids: int64 [num_tokens], logical positions of the queries (needed with ``rotary``).
    gate: what each layer's attention waits for.
    rows: int64, the tokens with plain attention; None: all.
    formed: the other tokens.
    hears: is told of each layer's attention.
    stored: which layers write K/V, and where each reads; None: each its own.
    """

    pool: Tensor
    page_table: Tensor
    query_starts: Tensor
    positions: Tensor
    slots: Tensor
    rotary: Callable[[Any], RotaryTable] | None = None
    position_ids: Tensor | None = None
    gate: LayerGate = field(default_factory=LayerGate)
    rows: Tensor | None = None
    formed: Sequence[FormedPart] = ()
    hears: Sequence[Callable[[LayerCall, Tensor], None]] = ()
    stored: StoredLayers | None = None

    def attend(self, layer: Any, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """Write the batch's K/V of this layer if it stores them, then let every query read its own context.

        Waits for loads before it writes: the first new tokens may share a page with the last loaded ones.
        """
        place, writes = layer.layer_idx, True
        if self.stored is not None:
            place, writes = self.stored.places[layer.layer_idx], layer.layer_idx in self.stored.own
        pages = self.pool[:, place]
        self._wait(place)
        if writes:
            write_pages(key, value, pages, self.slots)
        cos = sin = raw = None
        if self.rotary is not None:
            table = self.rotary(layer)
            cos, sin = table.cos, table.sin
            raw, query = query, rotate(query, cos[self.position_ids], sin[self.position_ids])
        call = LayerCall(layer.layer_idx, query, options.scale, options.window, options.softcap, cos, sin, raw)
        out = self._plain(call, query, pages) if self.rows is None else self._by_form(call, self.rows, pages)
        for hear in self.hears:
            hear(call, out)
        return out

    def _wait(self, layer: int) -> None:
        """For ``layer`` of the pool."""
        self.gate.attend(layer)
        if any(part.attending.reads_all_layers for part in self.formed):
            for other in range(self.pool.shape[1]):
                self.gate.attend(other)

    def _by_form(self, call: LayerCall, rows: Tensor, pages: Tensor) -> Tensor:
        """Packed fronts and chosen pages are attended by their forms, everything else as ever."""
        out = torch.empty_like(call.query)
        if rows.numel():
            out[rows] = self._plain(call, call.query[rows], pages)
        for part in self.formed:
            out[part.rows] = part.attending.attend(call)
        return out

    def _plain(self, call: LayerCall, query: Tensor, pages: Tensor) -> Tensor:
        attended: Tensor = paged_attention(
            query,
            pages,
            self.page_table,
            self.query_starts,
            self.positions,
            scale=call.scale,
            window=call.window,
            softcap=call.softcap,
            key_cos=call.key_cos,
            key_sin=call.key_sin,
        )
        return attended


@dataclass(slots=True)
class ShapeProbe:
    """Learns the K/V shape and the options of every layer from one forward pass; computes nothing."""

    shapes: dict[int, tuple[int, int, int]]  # layer -> heads, K/V heads, head dim
    options: dict[int, AttentionOptions] = field(default_factory=dict)

    def attend(self, layer: Any, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """Note the shapes and the options of ``layer``."""
        if not key.shape == value.shape or not query.shape[-1] == key.shape[-1]:
            raise ValueError(
                f"layer {layer.layer_idx} has head dimensions {query.shape[-1]} (query), {key.shape[-1]} (key) and "
                f"{value.shape[-1]} (value); the paged cache needs equal ones"
            )
        self.shapes[layer.layer_idx] = (query.shape[1], key.shape[1], key.shape[2])
        self.options[layer.layer_idx] = options
        return torch.zeros_like(query)


def layer_windows(module: Any) -> list[int | None]:
    """How many tokens each attention layer of a model looks back; None: all."""
    return [options.window for options in layer_options(module)]


@torch.inference_mode()
def layer_options(module: Any) -> list[AttentionOptions]:
    """What each attention layer of a model asks for."""
    probe = ShapeProbe({})
    ids = torch.zeros((1, 1), dtype=torch.int64, device=next(module.parameters()).device)
    module(input_ids=ids, position_ids=ids, use_cache=False, **{CONTEXT: probe})
    return [probe.options[layer] for layer in sorted(probe.options)]


def _forward(
    module: Any,
    query: Tensor,  # [1, num_heads, num_tokens, head_dim]
    key: Tensor,  # [1, num_kv_heads, num_tokens, head_dim]
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: unpack the row of one, attend, return [1, num_tokens, num_heads, head_dim]."""
    context: AttentionContext | None = kwargs.get(CONTEXT)
    if context is None:
        raise RuntimeError(f"attention {INTERFACE!r} was called without its context; run the model by a TorchExecutor")
    for name in _UNKNOWN:
        if kwargs.get(name) is not None:
            raise ValueError(f"{type(module).__name__} passes {name!r}, which paged attention does not implement")
    if not getattr(module, "is_causal", True):
        raise ValueError(f"{type(module).__name__} is not causal; only causal attention can be paged")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    options = AttentionOptions(scale, sliding_window, softcap)
    out = context.attend(module, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), options)
    return out.unsqueeze(0), None


def register() -> str:
    """Make the paged attention known to transformers (again is a no-op) and return its name."""
    AttentionInterface.register(INTERFACE, _forward)
    return INTERFACE
