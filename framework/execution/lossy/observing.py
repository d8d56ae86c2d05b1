"""Attention statistics of a batch, gathered while its forward pass goes from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....kernels.attention_statistics import AttentionStatistics, attention_statistics
from ....kernels.torch_statistics import BLOCK_ELEMENTS, dense_probabilities
from ...policy import Needs
from .forms import FormedSegment, LayerCall
from .rows import PoolRows


@dataclass(frozen=True, slots=True)
class Seen:
    """What the attention of one segment gave: float32 [L, H, n] and [L, H, w, n], where asked for."""

    column_sums: Tensor | None
    rows: Tensor | None


class Watch:
    """Hears of each layer's attention. Decoding queries wait until the pass is over: one call for all layers."""

    def __init__(self, rows: PoolRows, needs: Needs, segments: Sequence[FormedSegment]) -> None:
        self._rows = rows
        self._needs = needs
        self._segments = segments
        self._decodes = [i for i, s in enumerate(segments) if s.length == 1 and not _has_front(s)]
        at = [segments[i].rows.start for i in self._decodes]
        self._decode_rows = torch.tensor(at, dtype=torch.int64, device=rows.pool.device)
        self._waiting: list[tuple[LayerCall, Tensor]] = []
        self._layers: dict[int, list[Seen]] = {
            i: [] for i in range(len(segments)) if segments[i].length > 1 or _has_front(segments[i])
        }

    def attended(self, call: LayerCall, out: Tensor) -> None:
        """Called after the attention of each layer, in order."""
        if self._decodes:
            self._waiting.append((call, call.query.index_select(0, self._decode_rows)))
        for i, layers in self._layers.items():
            see = self._over_front if _has_front(self._segments[i]) else self._over_pages
            layers.append(see(call, self._segments[i]))

    def finish(self) -> list[Seen]:
        """What was seen of each segment. Their K/V must not have moved yet."""
        found = {i: _stacked(layers) for i, layers in self._layers.items()}
        if self._decodes:
            found |= dict(zip(self._decodes, self._of_decodes(), strict=True))
        self._waiting.clear()
        return [found[i] for i in range(len(self._segments))]

    def _of_decodes(self) -> list[Seen]:
        if len({(call.scale, call.softcap, id(call.key_cos)) for call, _ in self._waiting}) == 1:
            return self._at_once(self._waiting)
        layers = [self._at_once([each]) for each in self._waiting]
        return [
            Seen(_joined([s.column_sums for s in parts]), _joined([s.rows for s in parts]))
            for parts in zip(*layers, strict=True)
        ]

    def _at_once(self, calls: list[tuple[LayerCall, Tensor]]) -> list[Seen]:
        """Each layer of a decoding segment is a segment of the pool in which each layer of a page is a page."""
        pool, segments, count = self._rows.pool, [self._segments[i] for i in self._decodes], len(calls)
        layers = torch.tensor([call.layer for call, _ in calls], dtype=torch.int32, device=pool.device)
        table = _padded([s.table for s in segments])[:, None] * pool.shape[1] + layers[:, None]
        starts = torch.tensor([s.start for s in segments], dtype=torch.int32, device=pool.device)
        found = self._statistics(
            calls[0][0],
            torch.stack([query for _, query in calls], dim=1).flatten(0, 1),
            pool.flatten(0, 1),
            table.flatten(0, 1),
            torch.arange(len(segments) * count + 1, dtype=torch.int32, device=pool.device),
            starts.repeat_interleave(count),
        )
        return [_slice(found, slice(i * count, (i + 1) * count), s.start + 1) for i, s in enumerate(segments)]

    def _over_pages(self, call: LayerCall, segment: FormedSegment) -> Seen:
        device = segment.table.device
        found = self._statistics(
            call,
            call.query[segment.rows],
            self._rows.pool[:, call.layer],
            segment.table[None],
            torch.tensor([0, segment.length], dtype=torch.int32, device=device),
            torch.tensor([segment.start], dtype=torch.int32, device=device),
        )
        return Seen(found.column_sums, found.rows)

    def _statistics(
        self, call: LayerCall, query: Tensor, pool: Tensor, table: Tensor, starts: Tensor, positions: Tensor
    ) -> AttentionStatistics:
        return attention_statistics(
            query,
            pool,
            table,
            starts,
            positions,
            scale=call.scale,
            softcap=call.softcap,
            key_cos=call.key_cos,
            key_sin=call.key_sin,
            column_sums=self._needs.column_sums,
            rows=self._needs.rows,
        )

    def _over_front(self, call: LayerCall, segment: FormedSegment) -> Seen:
        """A context with a front: its columns unpacked, in blocks of queries."""
        keys, filled = self._unpacked(call, segment)
        query = call.query[segment.rows].transpose(0, 1)
        own = torch.arange(keys.shape[1] - segment.length, keys.shape[1], device=query.device)
        step = max(1, BLOCK_ELEMENTS // (query.shape[0] * keys.shape[1]))
        height = min(self._needs.rows, segment.length)
        sums = query.new_zeros((1, query.shape[0], keys.shape[1]), dtype=torch.float32)
        rows: list[Tensor] = []
        for first in range(0, segment.length, step):
            block = slice(first, first + step)
            seen = filled & (torch.arange(keys.shape[1], device=own.device) <= own[block, None])
            found = dense_probabilities(query[:, block], keys, seen, call.scale, call.softcap)
            sums += found.sum(dim=1)
            rows.append(found[:, max(0, segment.length - height - first) :])
        last = torch.cat(rows, dim=1)[None] if height else None
        return Seen(sums if self._needs.column_sums else None, last)

    def _unpacked(self, call: LayerCall, segment: FormedSegment) -> tuple[Tensor, Tensor]:
        """Keys [G, n, head_dim] of all columns, and which of them hold a token, bool [G, 1, 1, n]."""
        memory = segment.memory
        assert memory is not None and memory.front is not None
        front, pool = memory.front, self._rows.pool
        tail = front.pages * self._rows.page_size
        keys = (
            front.keys(pool, segment.table, call.layer),
            self._rows.read(segment.table, tail, segment.start + segment.length, False, call.layer),
        )
        dense = torch.cat(keys, dim=1)
        column = torch.arange(dense.shape[1], device=dense.device)
        filled = (column < front.counts[call.layer][:, None]) | (column >= front.columns)
        return dense, filled[:, None, None]


def _has_front(segment: FormedSegment) -> bool:
    return segment.memory is not None and segment.memory.front is not None


def _padded(tables: list[Tensor]) -> Tensor:
    return tables[0][None] if len(tables) == 1 else torch.nn.utils.rnn.pad_sequence(tables, batch_first=True)


def _slice(found: AttentionStatistics, at: slice, keys: int) -> Seen:
    return Seen(
        None if found.column_sums is None else found.column_sums[at, :, :keys],
        None if found.rows is None else found.rows[at, :, :, :keys],
    )


def _stacked(layers: list[Seen]) -> Seen:
    return Seen(_joined([s.column_sums for s in layers]), _joined([s.rows for s in layers]))


def _joined(layers: list[Tensor | None]) -> Tensor | None:
    """[1, ...] of each layer -> [L, ...]."""
    found = [layer for layer in layers if layer is not None]
    return torch.cat(found) if found else None
