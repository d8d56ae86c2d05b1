"""Compression at work: what a codec rounds and packs of a context after each step, and attention over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...policy import Codec, Due, Stage
from .codec_front import CodecFront, Layout, page_bytes_of
from .contexts import ContextMemory
from .forms import Attending, FormedSegment, LayerCall, Packed
from .fronts import FrontAttending, front_of, has_front, kept_in_order, taken, write_slots
from .frozen import dense
from .rows import PoolRows

BLOCK_SCORES = 1 << 24  # scores that are held at once


class CodecForm:
    """Rounds and packs the oldest tokens of every context; see ``PackingForm``."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def claims(self, memory: ContextMemory | None, start: int, length: int) -> bool:
        """Contexts with a front; it may be empty as yet."""
        return has_front(memory)

    def begin(self, pool: Tensor, segments: Sequence[FormedSegment]) -> Attending:
        """See ``Form``."""
        return CodecAttending(pool, segments)

    def pack(
        self, pool: Tensor, table: Tensor, memory: ContextMemory, keep: Tensor | None, stage: Stage
    ) -> Packed | None:
        """See ``PackingForm``. Between the parts of a prompt nothing is rounded: prompts attend in full precision."""
        work = _Work(self._codec, PoolRows.of(pool), table, memory)
        cut = None if keep is None else work.cut(keep)
        if stage == "chunk":
            return cut
        if cut is None:
            return work.round()
        left = ContextMemory(taken_columns(memory.positions, cut.columns), front=cut.front)
        rounded = _Work(self._codec, work.rows, table, left).round()
        return cut if rounded is None else Packed(rounded.front, taken_columns(cut.columns, rounded.columns))


def taken_columns(numbers: Tensor, columns: Tensor) -> Tensor:
    """``numbers`` [L, G, n] at ``columns`` [L, G, m]; -1 where a column is -1."""
    return numbers.gather(-1, columns.clamp(min=0)).masked_fill(columns < 0, -1)


@dataclass(frozen=True, slots=True)
class _Work:
    """One context after a step."""

    codec: Codec
    rows: PoolRows
    table: Tensor
    memory: ContextMemory

    @property
    def front(self) -> CodecFront:
        """The context's own, or an empty one."""
        if self.memory.front is not None:
            assert isinstance(self.memory.front, CodecFront)
            return self.memory.front
        counts = torch.zeros(self.memory.positions.shape[:2], dtype=torch.int64, device=self.table.device)
        return CodecFront(self.codec, 0, counts, 0)

    @property
    def native(self) -> int:
        """Columns behind the front."""
        return self.memory.columns - self.memory.front_columns

    # --- rounding, and packing what is rounded ---------------------------------------------------------------------

    def round(self) -> Packed | None:
        """Round what is due, and pack what can be packed if that frees slots."""
        front = self.front
        due = self.codec.due(self.native)
        due = Due(max(due.keys, front.rounded.keys), max(due.values, front.rounded.values))
        if due == front.rounded and self.codec.packable(self.native) <= front.tried:
            return None
        self._round(front, due)
        front = replace(front, rounded=due)
        packed = self._grow(front) if self.codec.packable(self.native) > front.tried else None
        if packed is not None:
            return packed
        front = replace(front, tried=max(front.tried, self.codec.packable(self.native)))
        columns = torch.arange(self.memory.columns, device=self.table.device)
        return Packed(front, columns.expand(self.memory.positions.shape).masked_fill(self.memory.positions < 0, -1))

    def _round(self, front: CodecFront, due: Due) -> None:
        base, done = front.pages * self.rows.page_size, front.rounded
        if due.keys > done.keys:
            # From a whole block on: packing groups keys the same way, and does not round them to other numbers again.
            first = base + self.codec.due(done.keys).keys
            keys = self._read(first, base + due.keys, False)
            write_slots(self.rows, self.table, first, self.codec.round_keys(keys), None)
        if due.values > done.values:
            values = self._read(base + done.values, base + due.values, True)
            write_slots(self.rows, self.table, base + done.values, None, self.codec.round_values(values))

    def _grow(self, front: CodecFront) -> Packed | None:
        """Pack the oldest tokens behind the front; None where that would free no slot."""
        base, count = front.pages * self.rows.page_size, self.codec.packable(self.native)
        both = [self._read(base, base + self.native, value) for value in (False, True)]
        parts = self.codec.pack(*(numbers[:, :, :count] for numbers in both))
        index = torch.arange(self.memory.columns, device=self.table.device).expand(self.memory.positions.shape)
        columns = index.masked_fill(self.memory.positions < 0, -1)
        counts = front.counts + count
        if front.layout is not None:
            parts = self.codec.join(front.parts(self.rows.pool, self.table), parts)
            parts, columns = self._closed(parts, columns, front.columns + count, counts)
        rest = self.native - count
        rounded = Due(front.rounded.keys - count, front.rounded.values - count)
        grown = self._front(parts, counts, rounded)
        if self._slots(grown, rest) >= self._slots(front, self.native):
            return None
        self._write(grown, parts, *(numbers[:, :, count:] for numbers in both))
        return Packed(grown, columns)

    def _closed(
        self, parts: dict[str, Tensor], columns: Tensor, width: int, counts: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Without the gaps that planes of different length have in the first ``width`` columns."""
        if bool((columns[..., :width] >= 0).all()):
            return parts, columns
        most = int(counts.max())
        order = (columns[..., :width] < 0).to(torch.int8).argsort(dim=-1, stable=True)[..., :most]
        front = columns.gather(-1, order)
        closed = torch.cat((front, columns[..., width:]), dim=-1)
        return self.codec.take(parts, order.masked_fill(front < 0, -1)), closed

    # --- letting go of tokens --------------------------------------------------------------------------------------

    def cut(self, keep: Tensor) -> Packed | None:
        """Let go of all but ``keep``; None where that would take more slots than now.

        As many tokens of every plane stay native as the plane with most native survivors has, or as the shortest plane
        has at all.
        """
        front, memory = self.front, self.memory
        counts, survivors = keep.sum(dim=-1), keep[..., front.columns :].sum(dim=-1)
        most, native, least = torch.stack((counts.max(), survivors.max(), counts.min())).tolist()
        native = min(native, least)
        order = kept_in_order(keep, memory.positions, most)
        packed = counts - native
        both = [dense(self.rows, self.table, memory, value).to(self.rows.pool.dtype) for value in (False, True)]
        behind = order.gather(-1, packed[..., None] + torch.arange(native, device=order.device))
        ahead = order[..., : most - native].masked_fill(order[..., : most - native] < 0, -1)
        ahead = ahead.masked_fill(torch.arange(most - native, device=order.device) >= packed[..., None], -1)
        parts = self._survivors(front, ahead, *both) if most > native else None
        cut = self._front(parts, packed, self._rounded(front, behind))
        if self._slots(cut, native) > memory.slots(self.rows.page_size):
            return None
        self._write(cut, parts, *(taken(numbers, behind) for numbers in both))
        unchanged = cut.layout is None and cut.rounded == Due()
        return Packed(None if unchanged else cut, torch.cat((ahead, behind), dim=-1))

    def _survivors(self, front: CodecFront, ahead: Tensor, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Parts of the columns ``ahead``: codes of those that are packed already, the others packed now."""
        old = (ahead >= 0) & (ahead < front.columns)
        new = ahead >= front.columns
        olds, news = (int(which.sum(dim=-1).max()) for which in (old, new))
        if not news:
            return self.codec.take(front.parts(self.rows.pool, self.table), ahead)
        first = old.sum(dim=-1, keepdim=True)
        last = (first + new.sum(dim=-1, keepdim=True) - 1).clamp(min=0)
        places = (first + torch.arange(news, device=ahead.device)).minimum(last)
        chosen = ahead.gather(-1, places)
        fresh = self.codec.pack(taken(keys, chosen), taken(values, chosen))
        if not olds:
            return fresh
        kept = self.codec.take(front.parts(self.rows.pool, self.table), ahead[..., :olds].where(old[..., :olds], -1))
        index = torch.arange(ahead.shape[-1], device=ahead.device)
        index = torch.where(new, index - first + olds, index).masked_fill(ahead < 0, -1)
        return self.codec.take(self.codec.join(kept, fresh), index)

    def _rounded(self, front: CodecFront, behind: Tensor) -> Due:
        """What counts as rounded of the columns ``behind``. A key that is not although others of its place are waits
        until it is packed; rounding a value again changes nothing."""
        keys = (behind < front.columns + front.rounded.keys).sum(dim=-1).max()
        values = (behind < front.columns + front.rounded.values).sum(dim=-1).min()
        return Due(*torch.stack((keys, values)).tolist())

    # --- the pages -------------------------------------------------------------------------------------------------

    def _read(self, first: int, stop: int, value: bool) -> Tensor:
        """[L, G, stop - first, head_dim] in the dtype of the cache."""
        return self.rows.read(self.table, first, stop, value).to(self.rows.pool.dtype)

    def _front(self, parts: dict[str, Tensor] | None, counts: Tensor, rounded: Due) -> CodecFront:
        if parts is None:
            return CodecFront(self.codec, 0, counts, 0, rounded=rounded)
        layout = Layout.of(parts)
        pages = layout.pages(page_bytes_of(self.rows.pool).shape[1])
        return CodecFront(self.codec, pages, counts, int(counts.max()), layout, rounded)

    def _slots(self, front: CodecFront, native: int) -> int:
        return front.pages * self.rows.page_size + native

    def _write(self, front: CodecFront, parts: dict[str, Tensor] | None, keys: Tensor, values: Tensor) -> None:
        if front.layout is not None and parts is not None:
            front.layout.write(page_bytes_of(self.rows.pool), self.table, parts)
        write_slots(self.rows, self.table, front.pages * self.rows.page_size, keys, values)


class CodecAttending(FrontAttending):
    """Unpacks one layer of each front at a time."""

    def attend_front(self, call: LayerCall, query: Tensor) -> tuple[Tensor, Tensor]:
        """See ``FrontAttending``."""
        out = torch.zeros_like(query)
        lse = torch.full(query.shape[:2], float("-inf"), dtype=torch.float32, device=query.device)
        first = 0
        for segment in self.segments:
            rows = slice(first, first + segment.length)
            first = rows.stop
            front = front_of(segment)
            assert isinstance(front, CodecFront)
            if front.columns:
                keys, values = front.both(self.pool, segment.table, call.layer)
                seen = torch.arange(front.columns, device=query.device) < front.counts[call.layer][:, None]
                out[rows], lse[rows] = attend_dense(call, query[rows], keys, values, seen)
        return out, lse


def attend_dense(call: LayerCall, query: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of ``query`` [tokens, H, head_dim] over the keys that ``seen`` says, and its log-sum-exp.

    Parameters
    ----------
    keys, values: float32 [G, n, head_dim]. seen: bool [G, n]; a KV head without any gives 0 and -inf.
    """
    blocks = torch.split(query, max(1, BLOCK_SCORES // (query.shape[1] * keys.shape[1])))
    parts = [_attend_block(call, block, keys, values, seen) for block in blocks]
    return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])


def _attend_block(call: LayerCall, query: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    tokens, num_heads, head_dim = query.shape
    grouped = (
        query.float().view(tokens, keys.shape[0], -1, head_dim).permute(1, 2, 0, 3)
    )  # [G, group, tokens, head_dim]
    scores = call.scale * grouped @ keys[:, None].transpose(-1, -2)
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    lse = scores.logsumexp(dim=-1)
    weights = (scores - lse.masked_fill(lse == float("-inf"), 0.0)[..., None]).exp()
    out = (weights @ values[:, None]).permute(2, 0, 1, 3).reshape(tokens, num_heads, head_dim)
    return out.to(query.dtype), lse.permute(2, 0, 1).reshape(tokens, num_heads)
