"""Layers that attend to the K/V of an earlier layer and store none of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]  # [sequences, tokens]


class LayerProbe(Protocol):
    """A loaded model, asked what sharing would do to it. Nothing in it changes."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        ...

    @property
    def kinds(self) -> Sequence[object]:
        """Of each layer; only layers of one kind (which look back equally far) can share."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; ValueError if the model has no tokenizer."""
        ...

    def mean_cache(self, ids: Ids) -> NDArray[np.float32]:
        """K and V of each layer, the mean over the sequences ``ids``: [L, 2, tokens x G x head_dim]."""
        ...

    def last_hidden(self, ids: Ids, sharing: Mapping[int, int]) -> NDArray[np.float32]:
        """What the LM head reads, if layers share as ``sharing`` says: [sequences, tokens, hidden_size]."""
        ...


def checked_sharing(sharing: Mapping[Any, Any], num_layers: int | None = None) -> dict[int, int]:
    """``sharing`` in the order of its layers, each mapped to one that stores: chains are followed downward.

    Parameters
    ----------
    sharing: layer -> the earlier layer whose K/V it uses.
    num_layers: of the model; None: not known yet.

    Raises
    ------
    ValueError
        If a pair does not point from a layer of the model to an earlier one; names the pair.
    """
    for layer, source in sharing.items():
        pair = f"layer_map has {layer!r}: {source!r}"
        if any(type(number) is not int for number in (layer, source)):
            raise ValueError(f"{pair}, expected two whole numbers: a layer, and the earlier one whose K/V it uses")
        if source == layer:
            raise ValueError(f"{pair}, which points to itself; leave out layers that keep their own K/V")
        if source > layer:
            raise ValueError(f"{pair}, which points upward; a layer can only use the K/V of an earlier one")
        if source < 0 or (num_layers is not None and layer >= num_layers):
            known = f"0 to {num_layers - 1}" if num_layers is not None else "0 and up"
            raise ValueError(f"{pair}, expected layers of the model: {known}")
    return {layer: _storing(sharing, layer) for layer in sorted(sharing)}


def _storing(sharing: Mapping[int, int], layer: int) -> int:
    while layer in sharing:
        layer = sharing[layer]
    return layer
