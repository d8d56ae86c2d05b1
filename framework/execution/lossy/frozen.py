"""Planes of different length: what every layer and KV head keeps, packed plane by plane into the front pages.

A page holds L * G plane-pages: ``page_size`` keys and as many values of head_dim numbers. A plane of c tokens takes
ceil(c / page_size) of them, the planes one after another over the front pages, whatever layer and head a plane-page
belonged to before. New tokens go to ordinary pages behind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....kernels.paged_attention import paged_attention
from ...policy import Stage
from .contexts import ContextMemory, Front
from .forms import Attending, FormedSegment, LayerCall, Packed
from .fronts import FrontAttending, front_of, has_front, kept_in_order, taken, write_slots
from .rows import PoolRows

FOLDED_ROWS = 64  # queries x query heads of a KV head that are attended as one


def plane_rows(pool: Tensor) -> Tensor:
    """The pool [num_pages, L, 2, G, page_size, head_dim] as plane-pages [rows, 2, 1, page_size, head_dim]: no copy.

    The keys of layer l and head g of page p are row (p * L + l) * 2 * G + g, the values G rows behind.
    """
    num_pages, num_layers, _, num_kv_heads, page_size, head_dim = pool.shape
    block = page_size * head_dim
    rows = num_pages * num_layers * 2 * num_kv_heads - num_kv_heads
    return pool.as_strided((rows, 2, 1, page_size, head_dim), (block, num_kv_heads * block, block, head_dim, 1))


@dataclass(frozen=True, slots=True)
class PlaneFront:
    """See ``Front``. ``firsts``: int64 [L, G], the first plane-page of each plane, counted over the front's pages."""

    pages: int
    counts: Tensor
    columns: int
    firsts: Tensor

    @classmethod
    def of(cls, counts: Tensor, page_size: int) -> PlaneFront:
        """Of planes with ``counts`` tokens, int64 [L, G]."""
        taken_pages = torch.div(counts + page_size - 1, page_size, rounding_mode="floor").flatten()
        ends = taken_pages.cumsum(0)
        total, columns = torch.stack((ends[-1], counts.max())).tolist()
        pages = -(-int(total) // counts.numel())
        return cls(pages, counts, int(columns), (ends - taken_pages).view_as(counts))

    def rows(self, pool: Tensor, table: Tensor) -> Tensor:
        """Int64 [L, G, width], the rows of :func:`plane_rows` of each plane; behind a plane's last any row."""
        _, num_layers, _, num_kv_heads, page_size, _ = pool.shape
        planes = num_layers * num_kv_heads
        width = -(-self.columns // page_size)
        index = self.firsts[..., None] + torch.arange(width, device=table.device)
        index = index.clamp(max=self.pages * planes - 1)
        page = table.index_select(0, torch.div(index, planes, rounding_mode="floor").flatten()).view_as(index).long()
        place = index % planes
        layer, head = torch.div(place, num_kv_heads, rounding_mode="floor"), place % num_kv_heads
        return (page * num_layers + layer) * 2 * num_kv_heads + head

    def keys(self, pool: Tensor, table: Tensor, layer: int | None = None) -> Tensor:
        """See ``Front``."""
        return self._read(pool, table, layer, 0)

    def values(self, pool: Tensor, table: Tensor, layer: int | None = None) -> Tensor:
        """See ``Front``."""
        return self._read(pool, table, layer, 1)

    def _read(self, pool: Tensor, table: Tensor, layer: int | None, which: int) -> Tensor:
        rows = self.rows(pool, table)
        rows, counts = (rows, self.counts) if layer is None else (rows[layer], self.counts[layer])
        found = plane_rows(pool)[:, which, 0].index_select(0, rows.flatten())
        found = found.view(*rows.shape[:-1], -1, pool.shape[-1])[..., : self.columns, :].float()
        behind = torch.arange(self.columns, device=rows.device) >= counts[..., None]
        return found.masked_fill(behind[..., None], 0.0)

    def write(self, pool: Tensor, table: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write K/V [L, G, columns, head_dim] into the front's pages."""
        page_size, head_dim = pool.shape[4:]
        rows = self.rows(pool, table)
        used = torch.arange(rows.shape[-1], device=rows.device) * page_size < self.counts[..., None]
        blocks = pool.view(-1, page_size, head_dim)
        room = rows.shape[-1] * page_size - self.columns
        for numbers, beside in ((keys, 0), (values, pool.shape[3])):
            whole = torch.nn.functional.pad(numbers, (0, 0, 0, room)).to(pool.dtype)
            pages = torch.unflatten(whole, 2, (rows.shape[-1], page_size))
            blocks.index_copy_(0, rows[used] + beside, pages[used])


class PlaneForm:
    """Packs planes of different length; see ``PackingForm``. Without a compression nothing else needs a front."""

    def claims(self, memory: ContextMemory | None, start: int, length: int) -> bool:
        """Contexts with a front."""
        return has_front(memory)

    def begin(self, pool: Tensor, segments: Sequence[FormedSegment]) -> Attending:
        """See ``Form``."""
        return PlaneAttending(pool, segments)

    def pack(
        self, pool: Tensor, table: Tensor, memory: ContextMemory, keep: Tensor | None, stage: Stage
    ) -> Packed | None:
        """See ``PackingForm``. Planes that keep equally many tokens become ordinary slots again."""
        if keep is None:
            return None
        rows = PoolRows.of(pool)
        counts = keep.sum(dim=-1)
        least, most = (int(count) for count in counts.aminmax())
        front = PlaneFront.of(counts, rows.page_size) if least < most else None
        slots = most if front is None else front.pages * rows.page_size
        if slots > memory.slots(rows.page_size):
            return None
        columns = kept_in_order(keep, memory.positions, most)
        keys, values = (taken(dense(rows, table, memory, value), columns) for value in (False, True))
        if front is None:
            write_slots(rows, table, 0, keys, values)
        else:
            front.write(pool, table, keys, values)
        return Packed(front, columns)


def dense(rows: PoolRows, table: Tensor, memory: ContextMemory, value: bool) -> Tensor:
    """Float32 [L, G, n, head_dim]: K or V of all columns of a context."""
    first = memory.front_pages * rows.page_size
    behind = rows.read(table, first, memory.slots(rows.page_size), value)
    front: Front | None = memory.front
    if front is None or not front.columns:
        return behind
    read = front.values if value else front.keys
    return torch.cat((read(rows.pool, table), behind), dim=2)


@dataclass(frozen=True, slots=True)
class _Fold:
    """The segments that are attended in one call, ``height`` queries of a KV head as one of more query heads.

    Attributes
    ----------
    queries: int64 [blocks, height], rows of the query tensor; the last block of a segment repeats its last one.
    rows: int32 [L, blocks * G, width]. positions: int32 [L, blocks * G], of the last key of each plane.
    """

    queries: Tensor
    rows: Tensor
    positions: Tensor


class PlaneAttending(FrontAttending):
    """Each plane is read by the ordinary paged attention: a segment of one KV head, whose pages are plane-pages."""

    def __init__(self, pool: Tensor, segments: Sequence[FormedSegment]) -> None:
        super().__init__(pool, segments)
        self._planes = plane_rows(pool)
        self._folds: dict[int, list[_Fold]] = {}

    def attend_front(self, call: LayerCall, query: Tensor) -> tuple[Tensor, Tensor]:
        """See ``FrontAttending``."""
        group = query.shape[1] // self.pool.shape[3]
        if group not in self._folds:
            self._folds[group] = self._fold(group)
        out, lse = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32)
        for fold in self._folds[group]:
            self._attend(call, query, fold, out, lse)
        return out, lse

    def _attend(self, call: LayerCall, query: Tensor, fold: _Fold, out: Tensor, lse: Tensor) -> None:
        blocks, height = fold.queries.shape
        num_kv_heads, head_dim = self.pool.shape[3], query.shape[2]
        shape = (blocks, height, num_kv_heads, query.shape[1] // num_kv_heads, head_dim)
        folded = query[fold.queries].view(shape).transpose(1, 2).reshape(blocks * num_kv_heads, -1, head_dim)
        starts = torch.arange(len(folded) + 1, dtype=torch.int32, device=query.device)
        part, sums = paged_attention(
            folded,
            self._planes,
            fold.rows[call.layer],
            starts,
            fold.positions[call.layer],
            scale=call.scale,
            softcap=call.softcap,
            return_lse=True,
        )
        back = (blocks, num_kv_heads, height, -1)
        out[fold.queries] = part.view(*back, head_dim).transpose(1, 2).reshape(blocks, height, -1, head_dim)
        lse[fold.queries] = sums.view(back).transpose(1, 2).reshape(blocks, height, -1)

    def _fold(self, group: int) -> list[_Fold]:
        """One fold for all decoding segments, one for all others."""
        by_height: dict[int, list[tuple[int, FormedSegment]]] = defaultdict(list)
        first = 0
        for segment in self.segments:
            height = 1 if segment.length == 1 else max(1, FOLDED_ROWS // group)
            by_height[height].append((first, segment))
            first += segment.length
        return [self._folded(height, members) for height, members in by_height.items()]

    def _folded(self, height: int, members: list[tuple[int, FormedSegment]]) -> _Fold:
        device = self.pool.device
        queries, tables, positions = [], [], []
        for first, segment in members:
            front = front_of(segment)
            assert isinstance(front, PlaneFront)
            blocks = -(-segment.length // height)
            places = torch.arange(blocks * height, device=device).clamp(max=segment.length - 1) + first
            queries.append(places.view(blocks, height))
            rows = front.rows(self.pool, segment.table).to(torch.int32)
            tables += [rows.movedim(2, 0)] * blocks  # [width, L, G]
            positions += [front.counts - 1] * blocks
        width = torch.nn.utils.rnn.pad_sequence(tables, batch_first=True)  # [blocks, width, L, G]
        return _Fold(
            torch.cat(queries),
            width.permute(2, 0, 3, 1).flatten(1, 2).contiguous(),
            torch.stack(positions).transpose(0, 1).flatten(1, 2).to(torch.int32).contiguous(),
        )
