"""Copies of pages between pools: the work of a transfer between device and host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.native import library
from ...kernels.page_copy import copy_pages
from .torch_transfer import Mark

Slots = NDArray[np.int32]
Arrived = Callable[[int, Mark | None], None]  # how many layers, and when on the device's own queue
STEP_BYTES = 2**20  # what waiting for a layer costs in Python pays from this size on


class PageCopies(Protocol):
    """Copies pages between two pools, in a thread of its own."""

    def copy(
        self,
        pools: tuple[Tensor, Tensor],
        slots: tuple[Slots, Slots],
        layers: tuple[int, int],
        arrived: Arrived | None = None,
    ) -> None:
        """Copy the first ``layers[0]`` .. ``layers[0] + layers[1]`` layers of the pages ``slots[0]`` of ``pools[0]`` to
        ``slots[1]`` of ``pools[1]``; return once they are there.

        ``arrived`` is called in the order of the layers, each counted once; None: nobody needs them apart.
        """
        ...


class HostCopies:
    """Copies in a CPU's memory, on the calling thread."""

    def __init__(self) -> None:
        library()  # built now if it must be, not while an iteration waits

    def copy(
        self,
        pools: tuple[Tensor, Tensor],
        slots: tuple[Slots, Slots],
        layers: tuple[int, int],
        arrived: Arrived | None = None,
    ) -> None:
        """See :class:`PageCopies`."""
        first, count = layers
        step = layers_per_step(len(slots[0]) * layer_bytes(pools[0]), STEP_BYTES) if arrived else count
        for start in range(first, first + count, step):
            part = min(step, first + count - start)
            copy_pages(*pools, *slots, start, part)
            if arrived:
                arrived(part, None)


def page_copies(device: torch.device) -> PageCopies:
    """Copies between the memory of ``device`` and the host's."""
    if device.type == "cuda":
        from .cuda_copies import CudaCopies

        return CudaCopies(device)
    return HostCopies()


def layer_bytes(pool: Tensor) -> int:
    """Bytes of one layer of a page of ``pool``."""
    return pool.stride(1) * pool.element_size()


def layers_per_step(bytes_per_layer: int, step_bytes: int) -> int:
    """How many layers to copy at once, so that a step has ``step_bytes`` or more."""
    return max(1, -(-step_bytes // max(bytes_per_layer, 1)))
