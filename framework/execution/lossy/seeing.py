"""What attention gave, segment by segment, put together from the statistics of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....kernels.attention_statistics import AttentionStatistics


@dataclass(frozen=True, slots=True)
class Seen:
    """What the attention of one segment gave, where asked for: float32 [L, H, n], [L, H, w, n], [L, H, queries] and
    [L, H, w, head_dim]; see ``policy.CacheView``."""

    column_sums: Tensor | None = None
    rows: Tensor | None = None
    log_sum_exp: Tensor | None = None
    queries: Tensor | None = None


def of_layers(found: AttentionStatistics, layers: int, ends: Sequence[int]) -> list[Seen]:
    """From one call for contexts of one query each, in which each layer of a context is a segment. ``ends``: how many
    keys each context has."""
    seen = []
    for i, end in enumerate(ends):
        at = slice(i * layers, (i + 1) * layers)
        sums = None if found.column_sums is None else found.column_sums[at, :, :end]
        rows = None if found.rows is None else found.rows[at, :, :, :end]
        seen.append(Seen(sums, rows, None if found.log_sum_exp is None else found.log_sum_exp[at, :, None]))
    return seen


def of_segments(found: Sequence[AttentionStatistics], lengths: Sequence[int], ends: Sequence[int]) -> list[Seen]:
    """From one call for each layer. ``lengths``, ``ends``: queries and keys of each segment."""
    seen, first = [], 0
    for i, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        sums = _stacked([None if f.column_sums is None else f.column_sums[i, :, :end] for f in found])
        rows = _stacked(
            [None if f.rows is None else f.rows[i, :, -min(length, f.rows.shape[2]) :, :end] for f in found]
        )
        lse = _stacked([None if f.log_sum_exp is None else f.log_sum_exp[first : first + length].T for f in found])
        seen.append(Seen(sums, rows, lse))
        first += length
    return seen


def layer_by_layer(parts: Sequence[Seen]) -> Seen:
    """One segment, from what some of its layers each gave."""
    return Seen(*(_joined([getattr(part, name) for part in parts]) for name in ("column_sums", "rows", "log_sum_exp")))


def _stacked(layers: list[Tensor | None]) -> Tensor | None:
    found = [layer for layer in layers if layer is not None]
    return torch.stack(found) if found else None


def _joined(layers: list[Tensor | None]) -> Tensor | None:
    found = [layer for layer in layers if layer is not None]
    return torch.cat(found) if found else None
