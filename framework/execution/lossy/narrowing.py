"""Narrowed contexts on the torch backend: what is remembered of them, and what a step leaves of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...policy import Compression, Needs, TokenTruncation
from ..contract import Narrowing, Segment
from ..rotation import ModelRotation
from .compacting import compact
from .contexts import ContextMemory
from .forms import FormedSegment, Packed, PackingForm
from .observing import Watch
from .rows import PoolRows
from .seeing import Seen
from .view import Futures, view_of


@dataclass(frozen=True, slots=True)
class _Step:
    """One narrowed context in a batch."""

    narrowing: Narrowing
    segment: FormedSegment
    memory: ContextMemory


class Pass:
    """The narrowed contexts of one forward pass. ``segments``: where they are in it; ``watch``: hears of its layers."""

    def __init__(self, rows: PoolRows, needs: Needs, steps: list[_Step], rotation: ModelRotation | None) -> None:
        self.steps = steps
        watched = [s for s in steps if needs.anything and (needs.decoding or s.narrowing.stage != "decode")]
        self._watched = [s.narrowing.context for s in watched]
        firsts = [s.narrowing.tokens - s.segment.length for s in watched]
        self.watch = Watch(rows, needs, [s.segment for s in watched], firsts, rotation) if watched else None

    def seen(self) -> dict[int, Seen]:
        """What attention gave, by context."""
        return {} if self.watch is None else dict(zip(self._watched, self.watch.finish(), strict=True))


class Narrower:
    """Owns what the executor remembers of narrowed contexts; its pool is the executor's."""

    def __init__(
        self,
        pool: Tensor,
        num_heads: int,
        truncation: TokenTruncation | None,
        compression: Compression | None,
        packing: PackingForm | None,
        rotation: ModelRotation | None = None,
    ) -> None:
        self._rows = PoolRows.of(pool)
        self._num_heads = num_heads
        self._truncation, self._compression, self._packing = truncation, compression, packing
        self._rotation = rotation
        self._memories: dict[int, ContextMemory] = {}

    def begin(self, segments: Sequence[Segment], table: Tensor) -> Pass | None:
        """The narrowed contexts among ``segments``; None if there are none. ``table``: the batch's, on the device.

        Raises
        ------
        ValueError
            If a segment does not begin where its context ends.
        """
        if not any(segment.narrowing for segment in segments):
            return None
        steps, row = [], 0
        for i, segment in enumerate(segments):
            if segment.narrowing is not None:
                steps.append(self._step(segment, segment.narrowing, row, table[i]))
            row += segment.length
        needs = Needs() if self._truncation is None else self._truncation.needs
        return Pass(self._rows, needs, steps, self._rotation)

    def _step(self, segment: Segment, narrowing: Narrowing, row: int, table: Tensor) -> _Step:
        memory = self._memories.get(narrowing.context)
        if memory is None:
            _, num_layers, _, num_kv_heads, _, _ = self._rows.pool.shape
            memory = ContextMemory.empty(num_layers, num_kv_heads, table.device)
        if (known := memory.slots(self._rows.page_size)) != segment.start:
            raise ValueError(
                f"context {narrowing.context} of conversation {narrowing.conversation} goes on at slot "
                f"{segment.start}, but {known} of its slots are known"
            )
        pages = table[: -(-(segment.start + segment.length) // self._rows.page_size)]
        rows = slice(row, row + segment.length)
        return _Step(narrowing, FormedSegment(rows, segment.start, pages, memory), memory)

    def settle(self, step: Pass, futures: Futures | None) -> dict[int, int]:
        """After the forward pass: ask the policy what stays. Returns the slots of each context that takes fewer.

        ``futures``: the full cache's attention of a conversation, for oracles; see ``ContextView``.
        """
        seen = step.seen()
        fewer: dict[int, int] = {}
        for each in step.steps:
            context = each.narrowing.context
            self._memories[context] = each.memory
            each.memory.extend(each.narrowing.tokens, each.segment.length)
            before = each.segment.start + each.segment.length
            self._narrow(each, seen.get(context), futures)
            if (slots := each.memory.slots(self._rows.page_size)) != before:
                fewer[context] = slots
        return fewer

    def memory(self, context: int) -> ContextMemory | None:
        """What is remembered of ``context``, not to be changed; None if nothing is."""
        return self._memories.get(context)

    def forget(self, context: int) -> None:
        """Drop what is remembered of ``context``, if anything is."""
        self._memories.pop(context, None)

    def _narrow(self, step: _Step, seen: Seen | None, futures: Futures | None) -> None:
        kept = None if self._truncation is None else self._kept(step, seen, futures, self._truncation)
        if kept is not None and kept.uniform and step.memory.front is None:
            by_place = self._truncation is not None and self._truncation.positions == "cache"
            ascending = by_place or self._compression is not None  # the oldest are packed
            step.memory.take(compact(self._rows, step.segment.table, kept.mask, kept.least, ascending))
            kept = None
        if kept is not None or self._compression is not None:
            self._pack(step, None if kept is None else kept.mask)

    def _kept(self, step: _Step, seen: Seen | None, futures: Futures | None, policy: TokenTruncation) -> Kept | None:
        """What stays; None if everything does."""
        memory = step.memory
        view = view_of(
            step.narrowing,
            step.segment.length,
            memory,
            seen,
            self._rows,
            step.segment.table,
            self._num_heads,
            futures,
        )
        policy.observe(view)
        keep = policy.keep(view)
        memory.state, memory.notes = view.state, view.notes
        return None if keep is None else checked(keep, memory, policy.name)

    def _pack(self, step: _Step, keep: Tensor | None) -> None:
        if self._packing is None:
            raise NotImplementedError("planes that keep different numbers of tokens cannot be packed yet")
        if keep is not None and self._truncation is not None and self._truncation.positions == "cache":
            raise ValueError(
                f"truncation {self._truncation.name!r} has positions=cache and keeps different numbers of tokens in "
                "different layers or heads; expected positions=true"
            )
        packed: Packed | None = self._packing.pack(
            self._rows.pool, step.segment.table, step.memory, keep, step.narrowing.stage
        )
        if packed is not None:
            step.memory.front = packed.front
            step.memory.take(packed.columns)


@dataclass(frozen=True, slots=True)
class Kept:
    """``mask``: bool [L, G, n], False in padded columns; ``least``, ``most``: tokens that a plane keeps."""

    mask: Tensor
    least: int
    most: int

    @property
    def uniform(self) -> bool:
        """All planes keep equally many."""
        return self.least == self.most


def checked(mask: Tensor, memory: ContextMemory, name: str) -> Kept | None:
    """What the mask of the policy ``name`` keeps; None if all stay.

    Raises
    ------
    ValueError
        If it is no bool [L, G, n], or a plane would be left empty.
    """
    shape = memory.positions.shape
    if mask.dtype != torch.bool or mask.shape != shape:
        raise ValueError(
            f"truncation {name!r} keeps {mask.dtype} {list(mask.shape)}, expected torch.bool {list(shape)}"
        )
    held = None if memory.front is None else memory.positions >= 0
    mask = mask if held is None else mask & held
    least, most = (int(count) for count in mask.sum(dim=-1).aminmax())
    if least < 1:
        raise ValueError(f"truncation {name!r} keeps no token of some plane, expected at least 1 in each")
    all_stay = least == memory.columns if held is None else torch.equal(mask, held)
    return None if all_stay else Kept(mask, least, most)
