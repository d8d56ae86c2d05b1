"""Attention statistics of a batch, gathered while its forward pass goes from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ....kernels.attention_statistics import AttentionStatistics, attention_statistics
from ...policy import Needs
from ..rotation import ModelRotation
from .asking import Asked
from .forms import FormedSegment, LayerCall
from .fronts import has_front
from .observing_fronts import FrontWatch
from .rows import PoolRows
from .seeing import Seen, layer_by_layer, of_layers, of_segments


class Watch:
    """Hears of each layer's attention. What can wait until the pass is over is done for all layers at once."""

    def __init__(
        self,
        rows: PoolRows,
        needs: Needs,
        segments: Sequence[FormedSegment],
        firsts: Sequence[int],
        rotation: ModelRotation | None,
    ) -> None:
        """``segments``: what is watched; ``firsts``, ``rotation``: see :class:`Asked`."""
        self._count = len(segments)
        self._asked = Asked(needs.queries, segments, firsts, rotation) if needs.queries else None
        ordinary = [i for i, s in enumerate(segments) if needs.scores and not has_front(s.memory)]
        decodes = [i for i in ordinary if segments[i].length == 1]
        prompts = [i for i in ordinary if segments[i].length > 1]
        fronts = [i for i, s in enumerate(segments) if needs.scores and has_front(s.memory)]
        kinds = ((decodes, _Decodes), (prompts, _Prompts), (fronts, FrontWatch))
        self._parts = [(of, kind(rows, needs, [segments[i] for i in of])) for of, kind in kinds if of]

    def attended(self, call: LayerCall, out: Tensor) -> None:
        """Called after the attention of each layer, in order."""
        for _, part in self._parts:
            part.attended(call)
        if self._asked is not None:
            self._asked.attended(call)

    def finish(self) -> list[Seen]:
        """What was seen of each segment. Their K/V must not have moved yet."""
        found = [Seen()] * self._count
        for of, part in self._parts:
            for i, seen in zip(of, part.finish(), strict=True):
                found[i] = seen
        queries = [] if self._asked is None else self._asked.finish()
        return [replace(s, queries=q) for s, q in zip(found, queries, strict=True)] if queries else found


class _Decodes:
    """Segments of one query: they wait until the pass is over, one call for all layers."""

    def __init__(self, rows: PoolRows, needs: Needs, segments: Sequence[FormedSegment]) -> None:
        self._pool, self._needs, self._segments = rows.pool, needs, segments
        at = [segment.rows.start for segment in segments]
        self._rows = torch.tensor(at, dtype=torch.int64, device=rows.pool.device)
        self._waiting: list[tuple[LayerCall, Tensor]] = []

    def attended(self, call: LayerCall) -> None:
        self._waiting.append((call, call.query.index_select(0, self._rows)))

    def finish(self) -> list[Seen]:
        if len({(call.scale, call.softcap, id(call.key_cos)) for call, _ in self._waiting}) == 1:
            return self._at_once(self._waiting)
        layers = [self._at_once([each]) for each in self._waiting]
        return [layer_by_layer(parts) for parts in zip(*layers, strict=True)]

    def _at_once(self, calls: list[tuple[LayerCall, Tensor]]) -> list[Seen]:
        """Each layer of a decoding segment is a segment of the pool in which each layer of a page is a page."""
        pool, segments, count = self._pool, self._segments, len(calls)
        layers = torch.tensor([call.layer for call, _ in calls], dtype=torch.int32, device=pool.device)
        table = _padded([s.table for s in segments])[:, None] * pool.shape[1] + layers[:, None]
        starts = torch.tensor([s.start for s in segments], dtype=torch.int32, device=pool.device)
        found = _statistics(
            calls[0][0],
            self._needs,
            torch.stack([query for _, query in calls], dim=1).flatten(0, 1),
            pool.flatten(0, 1),
            table.flatten(0, 1),
            torch.arange(len(segments) * count + 1, dtype=torch.int32, device=pool.device),
            starts.repeat_interleave(count),
        )
        return of_layers(found, count, [s.start + 1 for s in segments])


class _Prompts:
    """Longer segments: one call for each layer."""

    def __init__(self, rows: PoolRows, needs: Needs, segments: Sequence[FormedSegment]) -> None:
        self._pool, self._needs, self._segments = rows.pool, needs, segments
        self._lengths, device = [s.length for s in segments], rows.pool.device
        self._starts = torch.tensor([0, *self._lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
        self._positions = torch.tensor([s.start for s in segments], dtype=torch.int32, device=device)
        self._table = _padded([s.table for s in segments])
        self._layers: list[AttentionStatistics] = []

    def attended(self, call: LayerCall) -> None:
        parts = [call.query[segment.rows] for segment in self._segments]
        query = parts[0] if len(parts) == 1 else torch.cat(parts)
        pool = self._pool[:, call.layer]
        self._layers.append(_statistics(call, self._needs, query, pool, self._table, self._starts, self._positions))

    def finish(self) -> list[Seen]:
        return of_segments(self._layers, self._lengths, [s.start + s.length for s in self._segments])


def _statistics(
    call: LayerCall, needs: Needs, query: Tensor, pool: Tensor, table: Tensor, starts: Tensor, positions: Tensor
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
        column_sums=needs.column_sums,
        rows=needs.rows,
        log_sum_exp=needs.log_sum_exp,
    )


def _padded(tables: list[Tensor]) -> Tensor:
    return tables[0][None] if len(tables) == 1 else torch.nn.utils.rnn.pad_sequence(tables, batch_first=True)
