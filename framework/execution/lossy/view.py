"""A context as a token-level policy sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...policy import Grouping, Stage
from ..contract import Narrowing
from .contexts import ContextMemory
from .rows import PoolRows
from .seeing import Seen

Futures = Callable[[int], Tensor | None]


@dataclass(slots=True)
class ContextView:
    """Implements ``policy.CacheView``. Keys, values and the future are read when asked for."""

    conversation: int
    stage: Stage
    tokens: int
    queries: int
    positions: Tensor
    state: dict[str, Tensor]
    notes: dict[str, Tensor]
    _seen: Seen | None
    _memory: ContextMemory
    _rows: PoolRows
    _table: Tensor
    _num_heads: int
    _futures: Futures | None

    @property
    def column_sums(self) -> Tensor:
        """Float32 [L, H, n]."""
        return _asked(None if self._seen is None else self._seen.column_sums, "column_sums=True")

    @property
    def rows(self) -> Tensor:
        """Float32 [L, H, w, n]."""
        return _asked(None if self._seen is None else self._seen.rows, "rows > 0")

    @property
    def log_sum_exp(self) -> Tensor:
        """Float32 [L, H, queries]."""
        return _asked(None if self._seen is None else self._seen.log_sum_exp, "log_sum_exp=True")

    @property
    def unrotated_queries(self) -> Tensor:
        """Float32 [L, H, w, head_dim]."""
        return _asked(None if self._seen is None else self._seen.queries, "queries > 0")

    def keys(self) -> Tensor:
        """Float32 [L, G, n, head_dim], as cached."""
        return self._read(value=False)

    def values(self) -> Tensor:
        """Float32 [L, G, n, head_dim]."""
        return self._read(value=True)

    def grouped(self, per_head: Tensor, how: Grouping) -> Tensor:
        """[L, H, ...] -> [L, G, ...].

        Raises
        ------
        ValueError
            If ``how`` is none of mean, max and sum.
        """
        if how not in ("mean", "max", "sum"):
            raise ValueError(f"grouping is {how!r}, expected mean, max or sum")
        num_kv_heads = self.positions.shape[1]
        if per_head.shape[1] == num_kv_heads:
            return per_head
        groups = per_head.reshape(len(per_head), num_kv_heads, -1, *per_head.shape[2:])
        return groups.amax(dim=2) if how == "max" else groups.mean(dim=2) if how == "mean" else groups.sum(dim=2)

    def future(self) -> Tensor:
        """Float32 [L, H, n]."""
        full = None if self._futures is None else self._futures(self.conversation)
        if full is None:
            raise ValueError(f"nobody knows the future of conversation {self.conversation}: only a quality run does")
        later = full[:, :, self.tokens :].sum(dim=2)  # [L, H, T]
        at = self.positions.repeat_interleave(self._num_heads // self.positions.shape[1], dim=1)
        return later.gather(-1, at.clamp(min=0)).masked_fill(at < 0, 0.0)

    def _read(self, value: bool) -> Tensor:
        memory, rows = self._memory, self._rows
        tail = memory.front_pages * rows.page_size
        ordinary = rows.read(self._table, tail, memory.slots(rows.page_size), value)
        if memory.front is None:
            return ordinary
        read = memory.front.values if value else memory.front.keys
        return torch.cat((read(rows.pool, self._table), ordinary), dim=2)


def view_of(
    narrowing: Narrowing,
    queries: int,
    memory: ContextMemory,
    seen: Seen | None,
    rows: PoolRows,
    table: Tensor,
    num_heads: int,
    futures: Futures | None,
) -> ContextView:
    """The view of ``memory``, which has this step's columns already."""
    return ContextView(
        conversation=narrowing.conversation,
        stage=narrowing.stage,
        tokens=narrowing.tokens,
        queries=queries,
        positions=memory.positions,
        state=memory.state,
        notes=memory.notes,
        _seen=seen,
        _memory=memory,
        _rows=rows,
        _table=table,
        _num_heads=num_heads,
        _futures=futures,
    )


def _asked(found: Tensor | None, need: str) -> Tensor:
    if found is None:
        raise ValueError(f"the policy reads attention that it did not ask for: its needs lack {need}")
    return found
