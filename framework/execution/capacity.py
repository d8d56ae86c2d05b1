"""How many pages each tier gets: what the config says, or what the memory holds."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

CPU_FRACTION = 0.5  # the rest is left to the host tier, the weights' scratch space and whatever else runs
GPU_FRACTION = 0.9
HOST_FRACTION = 0.25


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that a tier takes where no size is given, and the most that it may take (None: any)."""

    default_bytes: int
    most_bytes: int | None = None


def device_pages(
    device_tokens: int | None,
    page_size: int,
    kv_bytes_per_token: int,
    free_bytes: int,
    stored_bytes_per_token: int | None = None,
) -> int:
    """Pages of ``page_size`` tokens in the device tier.

    Parameters
    ----------
    device_tokens: size in tokens of native K/V, rounded down to whole pages; None: as many as ``free_bytes`` hold.
    page_size: tokens per page, >= 1.
    kv_bytes_per_token: K and V of one token over all layers, >= 1.
    free_bytes: bytes that the pool may take (see :func:`free_bytes`).
    stored_bytes_per_token: what is stored of those, >= 1, where layers share: more pages then take the same bytes.
        None: all.

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
    stored_bytes = page_size * (stored_bytes_per_token or kv_bytes_per_token)
    if device_tokens is None:
        if free_bytes < stored_bytes:
            raise ValueError(f"{max(free_bytes, 0)} bytes are free for the KV cache, one page takes {stored_bytes}")
        return free_bytes // stored_bytes
    if device_tokens < page_size:
        raise ValueError(f"memory.device_tokens is {device_tokens}, expected at least one page of {page_size} tokens")
    pages = device_tokens // page_size
    if pages * page_bytes > free_bytes:
        raise ValueError(
            f"memory.device_tokens is {device_tokens}: its K/V take {pages * page_bytes} bytes, {free_bytes} are free;"
            f" at most {max(free_bytes, 0) // page_bytes * page_size} tokens fit"
        )
    return pages * page_bytes // stored_bytes


def lower_pages(
    name: str,
    tokens: int | None,
    page_size: int,
    kv_bytes_per_token: int,
    room: Room,
    stored_bytes_per_token: int | None = None,
) -> int:
    """Pages of the tier ``name`` (``host``, ``disk``) below the device; 0: there is no such tier.

    Parameters
    ----------
    tokens: size in tokens of native K/V, rounded down to whole pages; None: as many as ``room.default_bytes`` hold.
    page_size, kv_bytes_per_token, stored_bytes_per_token: as of the device tier, >= 1.

    Raises
    ------
    ValueError
        If ``tokens`` is less than a page but not 0, or takes more than ``room.most_bytes``.
    """
    page_bytes = page_size * kv_bytes_per_token
    stored_bytes = page_size * (stored_bytes_per_token or kv_bytes_per_token)
    if tokens is None:
        return max(0, room.default_bytes) // stored_bytes
    if tokens != 0 and tokens < page_size:
        raise ValueError(f"memory.{name}_tokens is {tokens}, expected 0 or at least one page of {page_size} tokens")
    pages = tokens // page_size
    if room.most_bytes is not None and pages * page_bytes > room.most_bytes:
        raise ValueError(
            f"memory.{name}_tokens is {tokens}: its K/V take {pages * page_bytes} bytes, {max(0, room.most_bytes)} are"
            f" there; at most {max(0, room.most_bytes) // page_bytes * page_size} tokens fit"
        )
    return pages * page_bytes // stored_bytes


def host_room(device: str, device_bytes: int) -> Room:
    """What this machine's memory has for a host tier beside a device pool of ``device_bytes`` on ``device``."""
    free = _free_host_bytes()
    taken = device_bytes if device.partition(":")[0] == "cpu" else 0
    return Room(min(int(free * HOST_FRACTION), max(0, free - taken)), max(0, free - taken))


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
