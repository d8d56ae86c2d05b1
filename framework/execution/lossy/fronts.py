"""What all forms with a front share: the ordinary slots behind it, and how the two parts of attention meet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ....kernels.merge_states import merge_states
from ....kernels.paged_attention import paged_attention
from .contexts import ContextMemory, Front
from .forms import FormedSegment, LayerCall
from .rows import PoolRows


def front_of(segment: FormedSegment) -> Front:
    """The front of a segment that has one."""
    assert segment.memory is not None and segment.memory.front is not None
    return segment.memory.front


def has_front(memory: ContextMemory | None) -> bool:
    """Whether a context with this ``memory`` has a front."""
    return memory is not None and memory.front is not None


class FrontAttending(ABC):
    """Attention over fronts and what is behind them, merged by log-sum-exp. Every query sees all of its front."""

    reads_all_layers = True

    def __init__(self, pool: Tensor, segments: Sequence[FormedSegment]) -> None:
        self.pool, self.segments = pool, segments
        page_size, device = pool.shape[4], pool.device
        fronts = [front_of(segment).pages for segment in segments]
        lengths = [segment.length for segment in segments]
        self._queries = torch.cat([torch.arange(s.rows.start, s.rows.stop, device=device) for s in segments])
        self._starts = torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
        behind = [s.start - pages * page_size for s, pages in zip(segments, fronts, strict=True)]
        self._positions = torch.tensor(behind, dtype=torch.int32, device=device)
        tables = [s.table[pages:] for s, pages in zip(segments, fronts, strict=True)]
        self._table = torch.nn.utils.rnn.pad_sequence(tables, batch_first=True)

    @abstractmethod
    def attend_front(self, call: LayerCall, query: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of ``query`` [tokens of all segments, H, head_dim] over the fronts, like ``query``, and its
        log-sum-exp, float32 [tokens, H]; -inf where a front is empty."""

    def attend(self, call: LayerCall) -> Tensor:
        """See ``Attending``."""
        query = call.query.index_select(0, self._queries)
        behind = paged_attention(
            query,
            self.pool[:, call.layer],
            self._table,
            self._starts,
            self._positions,
            scale=call.scale,
            softcap=call.softcap,
            return_lse=True,
        )
        return merge_states(*self.attend_front(call, query), *behind)[0]


def write_slots(rows: PoolRows, table: Tensor, first: int, keys: Tensor | None, values: Tensor | None) -> None:
    """Write K, V or both, [L, G, n, head_dim], into the slots from ``first`` on."""
    for numbers, beside in ((keys, 0), (values, rows.values)):
        if numbers is not None and numbers.shape[2]:
            slots = torch.arange(first, first + numbers.shape[2], device=table.device)
            target = rows.planes[:, None] + rows.of_slots(table, slots) + beside
            flat = rows.pool.view(-1, numbers.shape[-1])
            flat.index_copy_(0, target.flatten(), numbers.to(flat.dtype).flatten(0, 2))


def taken(numbers: Tensor, columns: Tensor) -> Tensor:
    """``numbers`` [L, G, n, head_dim] of ``columns`` int64 [L, G, m]; what a column of -1 gives is finite."""
    index = columns.clamp(min=0)[..., None].expand(*columns.shape, numbers.shape[-1])
    return numbers.gather(2, index)


def kept_in_order(keep: Tensor, positions: Tensor, most: int) -> Tensor:
    """Int64 [L, G, most]: the columns that ``keep`` names, oldest first, then -1."""
    outside = torch.iinfo(positions.dtype).max
    order = positions.masked_fill(~keep, outside).argsort(dim=-1, stable=True)[..., :most]
    return order.masked_fill(~keep.gather(-1, order), -1)
