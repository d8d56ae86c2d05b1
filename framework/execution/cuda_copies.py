"""Copies between a GPU and pinned memory: a stream for each direction, an event for each layer."""

from __future__ import annotations

import torch
from torch import Tensor

from .page_copies import Arrived, Slots, layer_bytes, layers_per_step

PIECE_BYTES = 2**18  # below this a copy takes less time than its launch


class CudaCopies:
    """Queues a page's layers as single copies on a stream of its own, and waits for the last.

    What the compute stream wrote before is complete when an iteration returns (its tokens were read), so nothing has to
    be waited for at the start; transfers that touch one page follow each other because each ends on the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(
        self,
        pools: tuple[Tensor, Tensor],
        slots: tuple[Slots, Slots],
        layers: tuple[int, int],
        arrived: Arrived | None = None,
    ) -> None:
        """See :class:`page_copies.PageCopies`; layers count as arrived, with an event, when they are queued."""
        source, target = pools
        first, count = layers
        step = layers_per_step(layer_bytes(source), PIECE_BYTES) if arrived else count
        pairs = list(zip(slots[0].tolist(), slots[1].tolist(), strict=True))
        with torch.cuda.stream(self._stream):
            for start in range(first, first + count, step):
                stop = min(start + step, first + count)
                for page, place in pairs:
                    target[place, start:stop].copy_(source[page, start:stop], non_blocking=True)
                if arrived:
                    arrived(stop - start, self._stream.record_event())
        self._stream.synchronize()
