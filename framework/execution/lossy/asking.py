"""The queries of a step before rotation, kept while the forward pass goes from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rotation import ModelRotation
from .forms import FormedSegment, LayerCall


class Asked:
    """The last ``count`` queries of each of ``segments``. ``firsts``: where each one's first token is in its context.

    ``rotation``: what the model does to its queries before attention sees them; None: nothing.
    """

    def __init__(
        self, count: int, segments: Sequence[FormedSegment], firsts: Sequence[int], rotation: ModelRotation | None
    ) -> None:
        self._rotation = rotation
        self._rows = [slice(max(s.rows.start, s.rows.stop - count), s.rows.stop) for s in segments]
        self._places = [
            first + r.start - s.rows.start for first, s, r in zip(firsts, segments, self._rows, strict=True)
        ]
        self._layers: list[list[Tensor]] = [[] for _ in segments]
        self._rotated = True

    def attended(self, call: LayerCall) -> None:
        """Called after the attention of each layer, in order."""
        self._rotated = call.unrotated is None
        query = call.query if call.unrotated is None else call.unrotated
        for rows, layers in zip(self._rows, self._layers, strict=True):
            layers.append(query[rows].clone())  # a view would hold on to the whole batch's

    def finish(self) -> list[Tensor]:
        """Of each segment float32 [L, H, w, head_dim]."""
        return [self._whole(layers, place) for layers, place in zip(self._layers, self._places, strict=True)]

    def _whole(self, layers: list[Tensor], place: int) -> Tensor:
        query = torch.stack(layers).transpose(1, 2).float()
        layers.clear()
        if self._rotation is None or not self._rotated:
            return query
        return self._rotation.undone(query, torch.arange(place, place + query.shape[2], device=query.device))
