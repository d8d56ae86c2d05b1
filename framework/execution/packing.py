"""A batch of segments as the packed ragged tensors that one forward pass takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .contract import Segment


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Tensors on the device; valid until the next call of the packer that made them.

    ``input_ids``, ``position_ids`` (as the model counts), ``slots``: int64 [num_tokens]. ``page_table``: int32
    [num_segments, max_pages]. ``query_starts``: int32 [num_segments + 1]. ``positions``: int32 [num_segments], place of
    the first query in its page table. ``sampled``: int64, the rows whose next token is wanted.
    """

    input_ids: Tensor
    position_ids: Tensor
    slots: Tensor
    page_table: Tensor
    query_starts: Tensor
    positions: Tensor
    sampled: Tensor


class Packer:
    """Packs segments; work per segment in Python, per token in numpy. Keeps one growing page-table buffer.

    ``by_slot``: the model's positions are places in the cache, where that is narrowed, and not those in the context.
    """

    def __init__(
        self, page_size: int, num_pages: int, max_positions: int, device: torch.device, *, by_slot: bool = False
    ) -> None:
        self._page_size = page_size
        self._num_pages = num_pages
        self._max_positions = max_positions
        self._device = device
        self._by_slot = by_slot
        self._table: NDArray[np.int32] = np.zeros(1024, dtype=np.int32)

    def pack(self, segments: list[Segment]) -> PackedBatch:
        """Pack ``segments`` (at least one), in order.

        Raises
        ------
        ValueError
            If a segment is empty, longer than its page table or than the model's positions.
        """
        count = len(segments)
        starts = np.fromiter((s.start for s in segments), np.int64, count)
        firsts = starts if self._by_slot else np.fromiter((s.position for s in segments), np.int64, count)
        lengths = np.fromiter((s.length for s in segments), np.int64, count)
        writes = np.fromiter((s.write for s in segments), np.bool_, count)
        query_starts = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(lengths, out=query_starts[1:])
        self._check(segments, starts, firsts, lengths)
        table = self._fill_table(segments, starts + lengths)
        ids = np.concatenate([s.log.ids(s.start, s.start + s.length) for s in segments]).astype(np.int64)
        owner = np.repeat(np.arange(count), lengths)
        places = np.arange(query_starts[-1]) + np.repeat(starts - query_starts[:-1], lengths)
        slots = table[owner, places // self._page_size] * np.int64(self._page_size) + places % self._page_size
        slots[~writes[owner]] = -1
        sampled = query_starts[1:][np.fromiter((s.sample for s in segments), np.bool_, count)] - 1
        return PackedBatch(
            input_ids=self._tensor(ids),
            position_ids=self._tensor(places + np.repeat(firsts - starts, lengths)),
            slots=self._tensor(slots),
            page_table=self._tensor(table),
            query_starts=self._tensor(query_starts.astype(np.int32)),
            positions=self._tensor(starts.astype(np.int32)),
            sampled=self._tensor(sampled),
        )

    def _fill_table(self, segments: list[Segment], ends: NDArray[np.int64]) -> NDArray[np.int32]:
        """Page tables padded with page 0 to the longest, int32 [num_segments, max_pages], contiguous."""
        used = -(-ends // self._page_size)
        width = int(used.max())
        if self._table.size < len(segments) * width:
            self._table = np.zeros(2 * len(segments) * width, dtype=np.int32)
        table = self._table[: len(segments) * width].reshape(len(segments), width)
        for row, segment, pages in zip(table, segments, used.tolist(), strict=True):
            row[:pages] = segment.table[:pages]
            row[pages:] = 0
        if table.min() < 0 or table.max() >= self._num_pages:
            raise ValueError(
                f"page table names pages {table.min()} .. {table.max()}, the pool has 0 .. {self._num_pages - 1}"
            )
        return table

    def _check(
        self,
        segments: list[Segment],
        starts: NDArray[np.int64],
        firsts: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> None:
        if lengths.min() < 1 or starts.min() < 0:
            raise ValueError(
                f"segment of {lengths.min()} tokens from {starts.min()}, expected at least 1 token from 0 or later"
            )
        longest = int((firsts + lengths).max())
        if longest > self._max_positions:
            raise ValueError(f"a context of {longest} tokens exceeds the model's {self._max_positions} positions")
        for segment in segments:
            if len(segment.table) * self._page_size < segment.start + segment.length:
                raise ValueError(
                    f"request {segment.request}: {len(segment.table)} pages of {self._page_size} tokens cannot hold "
                    f"{segment.start + segment.length} tokens"
                )

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.to(self._device, non_blocking=True)
