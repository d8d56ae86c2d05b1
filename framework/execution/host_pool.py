"""Pools of pages in the host's memory: pinned where the device is a GPU."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def host_pool(device_pool: Tensor, num_pages: int) -> Tensor:
    """The host tier's pool: ``num_pages`` pages of the layout and dtype of ``device_pool``, zeros.

    On a CPU its memory is taken page by page as it is written; for a GPU all of it is taken and pinned at once.

    Raises
    ------
    ValueError
        If ``num_pages`` is not positive, or the memory cannot be had or pinned.
    """
    if num_pages < 1:
        raise ValueError(f"the host pool has {num_pages} pages, expected at least 1")
    size = (num_pages, *device_pool.shape[1:])
    try:
        return lazy_zeros(size, device_pool.dtype, pinned=device_pool.is_cuda)
    except (MemoryError, RuntimeError) as error:
        need = math.prod(size) * device_pool.element_size()
        raise ValueError(
            f"the host pool of {num_pages} pages takes {need} bytes of memory, which are not to be had"
        ) from error


def lazy_zeros(size: Sequence[int], dtype: torch.dtype, *, pinned: bool = False) -> Tensor:
    """Zeros that cost nothing before they are written, unless they are pinned.

    Raises
    ------
    MemoryError, RuntimeError
        If the system does not give or pin the memory.
    """
    memory = np.zeros(math.prod(size) * dtype.itemsize, np.uint8)  # fresh pages of the system are zeros
    if pinned:
        _pin(memory)
    return torch.from_numpy(memory).view(dtype).view(tuple(size))


def _pin(memory: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
    """Lock ``memory`` for fast copies until it is freed; torch's own pinned memory would be rounded up to a power of
    two."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = int(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
    if status:
        raise RuntimeError(f"cudaHostRegister failed with status {status}")
    release = weakref.finalize(memory, runtime.cudaHostUnregister, memory.ctypes.data)
    release.atexit = False  # CUDA may have ended before
