"""Layers of a real model that use an earlier layer's K/V: where they read, and what they do not compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..policy import checked_sharing

_PROJECTIONS = ("k_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class StoredLayers:
    """The layers of a pool: ``places[layer]`` is the one that holds what that layer of the model attends to; ``own``:
    the layers of the model that write theirs, ascending."""

    places: tuple[int, ...]
    own: tuple[int, ...]

    @classmethod
    def of(cls, num_layers: int, sharing: Mapping[int, int]) -> StoredLayers:
        """Of a model of ``num_layers`` whose layers share as ``sharing`` says, which is as ``checked_sharing`` gives
        it."""
        own = tuple(layer for layer in range(num_layers) if layer not in sharing)
        return cls(tuple(own.index(sharing.get(layer, layer)) for layer in range(num_layers)), own)


def check_sharing(sharing: Mapping[int, int], windows: Sequence[int | None]) -> dict[int, int]:
    """``sharing``, checked against the model's layers: those that share look back equally far.

    Parameters
    ----------
    windows: of each layer, in tokens; None: all.

    Raises
    ------
    ValueError
        Naming a pair.
    """
    found = checked_sharing(sharing, len(windows))
    for layer, source in found.items():
        if windows[layer] != windows[source]:
            far = [f"{w} tokens" if w else "over the whole context" for w in (windows[layer], windows[source])]
            raise ValueError(
                f"layer_map has {layer}: {source}, but layer {layer} looks back {far[0]} and layer {source} {far[1]}; "
                "expected layers of one kind"
            )
    return found


class Skipped(nn.Module):
    """Stands in for a projection whose result nobody reads: zeros that take no memory."""

    def __init__(self, projection: Any) -> None:
        super().__init__()
        self.out_features = int(projection.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """[..., any] -> zeros [..., out_features]."""
        return x.new_zeros(()).expand(*x.shape[:-1], self.out_features)


def skip_projections(module: nn.Module, sharing: Mapping[int, int]) -> None:
    """Take the K and V projections out of the layers of ``module`` that share, in place. A matrix that computes Q as
    well stays."""
    for attention in list(module.modules()):
        if getattr(attention, "layer_idx", None) not in sharing:
            continue
        for name in _PROJECTIONS:
            if isinstance(projection := getattr(attention, name, None), nn.Linear):
                setattr(attention, name, Skipped(projection))
