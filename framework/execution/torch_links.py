"""The real links: pages move between the device's pool, the host's and the disk while the model computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..memory.moves import Move
from ..policy import Tier
from .contract import Clock
from .host_pool import host_pool as allocate
from .page_copies import PageCopies, Slots, layer_bytes, page_copies
from .torch_transfer import TorchTransfer
from .transfer_queue import Carry, Failed, TransferQueue
from .transfers import Transfer

STAGING_BYTES = 16 * 2**20
LANES = {
    (Tier.HOST, Tier.DEVICE): "up",
    (Tier.DEVICE, Tier.HOST): "down",
    (Tier.DISK, Tier.HOST): "read",
    (Tier.DISK, Tier.DEVICE): "read",
    (Tier.HOST, Tier.DISK): "write",
    (Tier.DEVICE, Tier.DISK): "write",
}
NONE_FAILED: Failed = np.empty(0, np.int64)
Keys = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class DiskPages(Protocol):
    """Pages on a disk by slot. Blocking and thread-safe; memory is not touched once a call has returned."""

    def read(self, slots: Slots, keys: Keys, out: Bytes, rows: Slots | None = None) -> Failed:
        """Fill row ``rows[i]`` (None: i) of ``out`` [any, page_bytes] with page ``slots[i]`` if it is intact and holds
        ``keys[i]``; the indices of those that do not, whose rows stay as they are."""
        ...

    def write(self, slots: Slots, keys: Keys, parents: Keys, data: Bytes, rows: Slots | None = None) -> Failed:
        """Store row ``rows[i]`` (None: i) of ``data`` [any, page_bytes] as page ``slots[i]``; the indices of those that
        could not be stored."""
        ...

    def problems(self) -> list[str]:
        """Warnings since the last call, one line each."""
        ...

    def close(self) -> None:
        """Finish and free what is held."""
        ...


class TorchLinks:
    """Implements :class:`transfers.Links`: one thread for each direction of the host's link and of the disk's.

    The disk reads into and writes from the pools themselves; what a GPU holds, or single layers, pass a small buffer.
    """

    def __init__(
        self,
        device_pool: Tensor,
        host_pool: Tensor | None,
        disk: DiskPages | None,
        clock: Clock,
        *,
        make_copies: Callable[[], PageCopies] | None = None,
        staging_bytes: int = STAGING_BYTES,
    ) -> None:
        """Start the threads for the tiers that there are.

        Parameters
        ----------
        device_pool: [num_pages, num_layers, 2, num_kv_heads, page_size, head_dim], contiguous.
        host_pool: the same but for the number of pages, in the host's memory (:func:`host_pool.host_pool`).
        disk: closed with the links.
        clock: its times are those of transfers; read from the threads.
        make_copies: what copies between device and host; None: what ``device_pool`` needs.
        staging_bytes: of each direction's buffer; at least one page.

        Raises
        ------
        ValueError
            If the pools differ in more than the number of pages, or a buffer cannot be had.
        """
        if host_pool is not None and (host_pool.shape[1:], host_pool.dtype) != (
            device_pool.shape[1:],
            device_pool.dtype,
        ):
            raise ValueError(
                f"host pool {host_pool.dtype} {tuple(host_pool.shape)} does not match the device pool "
                f"{device_pool.dtype} {tuple(device_pool.shape)}"
            )
        self._pools = {Tier.DEVICE: device_pool} | ({Tier.HOST: host_pool} if host_pool is not None else {})
        self._bytes = {tier: _as_bytes(pool) for tier, pool in self._pools.items() if not pool.is_cuda}
        self._disk = disk
        self._layer_bytes = layer_bytes(device_pool)
        self._num_layers = device_pool.shape[1]
        make = make_copies or partial(page_copies, device_pool.device)
        carriers: dict[str, Carry] = {}
        if host_pool is not None:
            carriers |= {name: partial(self._copy, make()) for name in ("up", "down")}
        if disk is not None:
            part = max(1, staging_bytes // (self._layer_bytes * self._num_layers))
            carriers["read"] = partial(self._read, disk, make(), allocate(device_pool, part))
            carriers["write"] = partial(self._write, disk, make(), allocate(device_pool, part))
        pairs = (("up", "down"), ("read", "write"))
        self._queue = TransferQueue(carriers, [pair for pair in pairs if pair[0] in carriers], clock)

    def submit(self, move: Move, now_s: float, after: Sequence[Transfer] = ()) -> TorchTransfer:
        """See :class:`transfers.Links`.

        Raises
        ------
        ValueError
            If there is no such link, slots or layers do not fit, or the links are closed.
        """
        self._check(move)
        layers = self._layers(move)[1]
        num_bytes = move.pages * layers * self._layer_bytes
        parts = layers if (move.source, move.target) == (Tier.HOST, Tier.DEVICE) else 1
        return self._queue.submit(LANES[move.source, move.target], move, num_bytes, parts, now_s, after)

    def poll(self, now_s: float) -> list[Transfer]:
        """See :class:`transfers.Links`."""
        return self._queue.poll()

    def next_end_s(self, now_s: float) -> float:
        """``now_s`` while anything is in flight, else ``inf``."""
        return now_s if self._queue.in_flight else math.inf

    def wait(self, timeout_s: float | None = None) -> None:
        """See :class:`transfers.Links`; returns also after ``timeout_s`` if given.

        Raises
        ------
        TimeoutError
            If nothing happened for minutes and no ``timeout_s`` was given.
        """
        self._queue.wait(timeout_s)

    def cancel(self, transfer: Transfer) -> bool:
        """See :class:`transfers.Links`."""
        return self._queue.cancel(transfer)

    def problems(self) -> list[str]:
        """See :class:`transfers.Links`."""
        return self._queue.problems() + (self._disk.problems() if self._disk is not None else [])

    def closed(self) -> tuple[Tier, ...]:
        """See :class:`transfers.Links`."""
        writable = self._disk is None or getattr(self._disk, "writable", True)
        return () if writable else (Tier.DISK,)

    def close(self) -> None:
        """Finish what goes to the disk, call off what else has not begun, end the threads; twice is once."""
        if not self._pools:
            return
        ended = self._queue.close(lambda move: move.target == Tier.DISK)
        if self._disk is not None and ended:
            self._disk.close()
        self._pools, self._bytes = {}, {}

    def _copy(self, copies: PageCopies, transfer: TorchTransfer) -> Failed:
        """Between device and host."""
        move = transfer.move
        arrived = partial(self._queue.arrived, transfer) if transfer.layers > 1 else None
        pools = self._pools[move.source], self._pools[move.target]
        copies.copy(pools, (move.source_slots, move.target_slots), self._layers(move), arrived)
        return NONE_FAILED

    def _read(self, disk: DiskPages, copies: PageCopies, staging: Tensor, transfer: TorchTransfer) -> Failed:
        """From the disk, a buffer at a time where there must be one."""
        move, failures = transfer.move, [NONE_FAILED]
        if move.target in self._bytes and move.layers is None:
            return disk.read(move.source_slots, move.keys, self._bytes[move.target], move.target_slots)
        for part in _parts(move.pages, len(staging)):
            slots = move.source_slots[part]
            failed = disk.read(slots, move.keys[part], _as_bytes(staging[: len(slots)]))
            intact = np.setdiff1d(np.arange(len(slots), dtype=np.int32), failed)
            pools = staging, self._pools[move.target]
            copies.copy(pools, (intact, move.target_slots[part][intact]), self._layers(move))
            failures.append(failed + part.start)
        return np.concatenate(failures)

    def _write(self, disk: DiskPages, copies: PageCopies, staging: Tensor, transfer: TorchTransfer) -> Failed:
        """To the disk, a buffer at a time where there must be one."""
        move, failures = transfer.move, [NONE_FAILED]
        if move.source in self._bytes:
            return disk.write(move.target_slots, move.keys, move.parents, self._bytes[move.source], move.source_slots)
        for part in _parts(move.pages, len(staging)):
            slots = move.target_slots[part]
            pools = self._pools[move.source], staging
            copies.copy(pools, (move.source_slots[part], np.arange(len(slots), dtype=np.int32)), self._layers(move))
            failed = disk.write(slots, move.keys[part], move.parents[part], _as_bytes(staging[: len(slots)]))
            failures.append(failed + part.start)
        return np.concatenate(failures)

    def _layers(self, move: Move) -> tuple[int, int]:
        return move.layers or (0, self._num_layers)

    def _check(self, move: Move) -> None:
        tiers = {*self._pools, *([Tier.DISK] if self._disk is not None else [])}
        if (move.source, move.target) not in LANES or not {move.source, move.target} <= tiers:
            raise ValueError(f"there is no link {move.link}; the tiers are {', '.join(t.name for t in sorted(tiers))}")
        first, count = self._layers(move)
        if not (first >= 0 and 1 <= count <= self._num_layers - first):
            raise ValueError(f"{move.link} of layers {move.layers}, expected some of {self._num_layers}")
        if move.target == Tier.DISK and count != self._num_layers:
            raise ValueError(f"{move.link} of layers {move.layers}, expected None: the disk holds whole pages")
        for tier, slots in ((move.source, move.source_slots), (move.target, move.target_slots)):
            _check_slots(move, tier, slots, self._pools.get(tier))


def _check_slots(move: Move, tier: Tier, slots: Slots, pool: Tensor | None) -> None:
    if slots.dtype != np.int32 or slots.shape != move.keys.shape:
        raise ValueError(
            f"{move.link}: slots {slots.dtype} {slots.shape} for {len(move.keys)} keys, expected as many int32"
        )
    if pool is not None and slots.size and not (slots.min() >= 0 and slots.max() < len(pool)):
        raise ValueError(f"{move.link}: {tier.name} slots {slots.min()}..{slots.max()}, expected 0..{len(pool) - 1}")


def _parts(pages: int, size: int) -> Iterator[slice]:
    """``pages`` in slices of ``size``."""
    return (slice(start, min(start + size, pages)) for start in range(0, pages, size))


def _as_bytes(pages: Tensor) -> Bytes:
    """The memory of ``pages``, [n, page_bytes]."""
    array: Bytes = pages.view(len(pages), -1).view(torch.uint8).numpy()
    return array
