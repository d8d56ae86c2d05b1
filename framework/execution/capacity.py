"""How many device pages a run gets: what the config says, or what the memory holds."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

CPU_FRACTION = 0.5  # the rest is left to the weights' scratch space and to whatever else runs
GPU_FRACTION = 0.9


def device_pages(device_tokens: int | None, page_size: int, kv_bytes_per_token: int, free_bytes: int) -> int:
    """Pages of ``page_size`` tokens in the device tier.

    Parameters
    ----------
    device_tokens: size in tokens of native K/V, rounded down to whole pages; None: as many as ``free_bytes`` hold.
    page_size: tokens per page, >= 1.
    kv_bytes_per_token: K and V of one token over all layers, >= 1.
    free_bytes: bytes that the pool may take (see :func:`free_bytes`).

    Raises
    ------
    ValueError
        If a size is not positive, or the pool would hold no page, or more than ``free_bytes``.
    """
    if page_size < 1:
        raise ValueError(f"memory.page_size is {page_size}, expected at least 1")
    if kv_bytes_per_token < 1:
        raise ValueError(f"kv_bytes_per_token is {kv_bytes_per_token}, expected at least 1")
    page_bytes = page_size * kv_bytes_per_token
    if device_tokens is None:
        if free_bytes < page_bytes:
            raise ValueError(f"{max(free_bytes, 0)} bytes are free for the KV cache, one page takes {page_bytes}")
        return free_bytes // page_bytes
    if device_tokens < page_size:
        raise ValueError(f"memory.device_tokens is {device_tokens}, expected at least one page of {page_size} tokens")
    pages = device_tokens // page_size
    if pages * page_bytes > free_bytes:
        raise ValueError(
            f"memory.device_tokens is {device_tokens}: its K/V take {pages * page_bytes} bytes, {free_bytes} are free;"
            f" at most {max(free_bytes, 0) // page_bytes * page_size} tokens fit"
        )
    return pages


def free_bytes(device: str = "cpu") -> int:
    """Bytes that a KV pool may take on ``device``: half of the free memory of a CPU, nine tenths of a GPU's."""
    if device.partition(":")[0] == "cpu":
        return int(_free_host_bytes() * CPU_FRACTION)
    import torch

    return int(torch.cuda.mem_get_info(torch.device(device))[0] * GPU_FRACTION)


def _free_host_bytes() -> int:
    """What the machine has available, or less where the process's control group allows less."""
    free = [_available_bytes()]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with contextlib.suppress(OSError, ValueError):  # no control group, or "max"
        free.append(int(limit.read_text()) - int(used.read_text()))
    return max(min(free), 0)


def _available_bytes() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
