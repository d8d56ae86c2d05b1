"""What sharing K/V between layers would do to a loaded model: dense forward passes over a few short sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .attention import CONTEXT, AttentionOptions, layer_windows
from .models import LoadedModel

Ids = NDArray[np.int64]


class _Dense:
    """Attention without a cache: ``sequences`` of equal length in one batch row. Layers in ``sharing`` use the K/V of
    the layer that it names; the others' are left in ``cache``: layer -> K, V [sequences, tokens, G, head_dim]."""

    def __init__(self, sequences: int, sharing: Mapping[int, int]) -> None:
        self.cache: dict[int, tuple[Tensor, Tensor]] = {}
        self._sequences, self._sharing = sequences, sharing

    def attend(self, layer: Any, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """See :class:`.attention.AttentionContext`."""
        source = self._sharing.get(layer.layer_idx, layer.layer_idx)
        if source == layer.layer_idx:
            self.cache[source] = self._apart(key), self._apart(value)
        return _attention(self._apart(query), *self.cache[source], options).flatten(0, 1)

    def _apart(self, rows: Tensor) -> Tensor:
        return rows.reshape(self._sequences, -1, *rows.shape[1:])


class TorchLayerProbe:
    """Implements :class:`..policy.LayerProbe` on ``model``. ``on_pass`` is called after each forward pass."""

    def __init__(self, model: LoadedModel, on_pass: Callable[[], None] = lambda: None) -> None:
        self.vocab_size = model.shape.vocab_size
        self._module: Any = model.module
        self._device = next(model.module.parameters()).device
        self._tokenizer, self._on_pass = model.tokenizer, on_pass
        self.kinds = layer_windows(model.module)

    def encode(self, text: str) -> list[int]:
        """See :class:`..policy.LayerProbe`."""
        if self._tokenizer is None:
            raise ValueError("the model has no tokenizer for a text; leave text null for random tokens")
        return self._tokenizer.encode(text)

    def mean_cache(self, ids: Ids) -> NDArray[np.float32]:
        """See :class:`..policy.LayerProbe`."""
        cache = self._run(ids, {})[1].cache
        layers = [torch.stack([x.float().mean(dim=0).flatten() for x in cache[layer]]) for layer in sorted(cache)]
        found: NDArray[np.float32] = torch.stack(layers).cpu().numpy()
        return found

    def last_hidden(self, ids: Ids, sharing: Mapping[int, int]) -> NDArray[np.float32]:
        """See :class:`..policy.LayerProbe`."""
        hidden = self._run(ids, sharing)[0]
        found: NDArray[np.float32] = hidden.float().cpu().numpy().reshape(*ids.shape, -1)
        return found

    @torch.inference_mode()
    def _run(self, ids: Ids, sharing: Mapping[int, int]) -> tuple[Tensor, _Dense]:
        """The last hidden states [sequences x tokens, hidden_size], and what attention left."""
        dense = _Dense(len(ids), sharing)
        rows = torch.from_numpy(ids).to(self._device).view(1, -1)
        positions = torch.arange(ids.shape[1], device=self._device).repeat(len(ids))[None]
        out = self._module.get_decoder()(
            input_ids=rows, position_ids=positions, use_cache=False, **{CONTEXT: dense}
        ).last_hidden_state[0]
        self._on_pass()
        return out, dense


def _attention(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
    """Causal, [sequences, tokens, heads, head_dim]; scores in float32."""
    tokens, group = query.shape[1], query.shape[2] // key.shape[2]
    key, value = key.repeat_interleave(group, dim=2), value.repeat_interleave(group, dim=2)
    scores = torch.einsum("sqhd,skhd->shqk", query.float(), key.float()) * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    back = torch.arange(tokens, device=query.device)
    back = back[:, None] - back[None]  # [queries, keys]
    seen = back >= 0 if options.window is None else (back >= 0) & (back < options.window)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return torch.einsum("shqk,skhd->sqhd", weights, value.float()).to(query.dtype)
