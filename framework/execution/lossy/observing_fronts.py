"""Attention statistics of contexts with a front: their columns unpacked, in blocks of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....kernels.torch_statistics import BLOCK_ELEMENTS, dense_probabilities
from ...policy import Needs
from .forms import FormedSegment, LayerCall
from .fronts import front_of
from .rows import PoolRows
from .seeing import Seen, layer_by_layer


class FrontWatch:
    """Waits until the pass is over; then a small context's layers are done at once, a large one's one by one."""

    def __init__(self, rows: PoolRows, needs: Needs, segments: Sequence[FormedSegment]) -> None:
        self._rows, self._needs, self._segments = rows, needs, segments
        self._queries: list[list[Tensor]] = [[] for _ in segments]
        self._calls: list[LayerCall] = []

    def attended(self, call: LayerCall) -> None:
        """Called after the attention of each layer, in order."""
        self._calls.append(call)
        for segment, queries in zip(self._segments, self._queries, strict=True):
            queries.append(call.query[segment.rows])

    def finish(self) -> list[Seen]:
        """What was seen of each segment. Their K/V must not have moved yet."""
        found = [
            self._of(s, torch.stack(q).transpose(1, 2)) for s, q in zip(self._segments, self._queries, strict=True)
        ]
        self._queries.clear()
        return found

    def _of(self, segment: FormedSegment, query: Tensor) -> Seen:
        """``query``: [L, H, length, head_dim]."""
        columns = front_of(segment).columns + segment.start + segment.length
        alike = len({(call.scale, call.softcap) for call in self._calls}) == 1
        if alike and query.shape[0] * columns * max(query.shape[1], query.shape[3]) <= BLOCK_ELEMENTS:
            return self._seen(segment, query, None)
        return layer_by_layer([self._seen(segment, query[layer : layer + 1], layer) for layer in range(len(query))])

    def _seen(self, segment: FormedSegment, query: Tensor, layer: int | None) -> Seen:
        """Of all layers, or one."""
        keys, filled = self._unpacked(segment, layer)
        needs, call, length, total = self._needs, self._calls[layer or 0], segment.length, keys.shape[2]
        height = min(needs.rows, length)
        own = torch.arange(total - length, total, device=query.device)
        step = max(1, BLOCK_ELEMENTS // (query.shape[0] * query.shape[1] * total))
        sums = query.new_zeros((*query.shape[:2], total), dtype=torch.float32) if needs.column_sums else None
        lse = query.new_empty(query.shape[:3], dtype=torch.float32) if needs.log_sum_exp else None
        rows: list[Tensor] = []
        for first in range(0, length, step):
            block = slice(first, first + step)
            seen = filled & (torch.arange(total, device=own.device) <= own[block, None])
            part = None if lse is None else lse[:, :, block]
            found = dense_probabilities(query[:, :, block], keys, seen, call.scale, call.softcap, part)
            if sums is not None:
                sums += found.sum(dim=2)
            rows.append(found[:, :, max(0, length - height - first) :])
        return Seen(sums, torch.cat(rows, dim=2) if height else None, lse)

    def _unpacked(self, segment: FormedSegment, layer: int | None) -> tuple[Tensor, Tensor]:
        """Keys [L, G, n, head_dim] of all columns, and which of them hold a token, bool [L, G, 1, 1, n]."""
        front, pool = front_of(segment), self._rows.pool
        tail, end = front.pages * self._rows.page_size, segment.start + segment.length
        keys = front.keys(pool, segment.table, layer), self._rows.read(segment.table, tail, end, False, layer)
        dense = torch.cat(keys, dim=-2)
        column = torch.arange(dense.shape[-2], device=dense.device)
        counts = front.counts if layer is None else front.counts[layer : layer + 1]
        filled = (column < counts[..., None]) | (column >= front.columns)
        return dense if layer is None else dense[None], filled[:, :, None, None]
