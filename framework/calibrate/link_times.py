"""What copies between the tiers take, by the links that a run uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..execution.clocks import SkipIdleClock
from ..execution.tables import LinkTimes
from ..execution.transfers import Links, Transfer
from ..memory.moves import Move
from ..policy import Tier
from .steps import midmean

if TYPE_CHECKING:
    from ..execution.torch_executor import TorchExecutor

LARGEST_BYTES = 32 * 2**20
REPEATS = 9


@dataclass(frozen=True, slots=True)
class HostTimes:
    """Of the link between device and host: bytes/s one way alone, what each copy takes beside, and the share of the
    rate that is lost while the other direction is busy."""

    bytes_per_s: float
    latency_s: float
    duplex_loss: float


class HostLink:
    """Copies pages up and down between the pool of ``executor`` and one of the host's, as :class:`.TorchLinks` do."""

    def __init__(self, executor: TorchExecutor, page_bytes: int) -> None:
        from ..execution.host_pool import host_pool
        from ..execution.torch_links import TorchLinks

        self.pages = max(4, min(LARGEST_BYTES // page_bytes, len(executor.pool) // 2))
        self._page_bytes = page_bytes
        self._clock = SkipIdleClock()
        self._clock.now()
        host = host_pool(executor.pool, 2 * self.pages)
        self._links: Links = TorchLinks(executor.pool, host, None, self._clock)
        self._random = np.random.default_rng(0)

    def close(self) -> None:
        """End the threads."""
        self._links.close()

    def measure(self, repeats: int = REPEATS) -> HostTimes:
        """Copy 1, a few and many pages in both directions, alone and at once, turn by turn."""
        sizes = [1, max(2, self.pages // 8), self.pages]
        alone = {(pages, down): list[float]() for pages in sizes for down in (False, True)}
        both: list[float] = []
        for turn in range(repeats + 1):
            for (pages, down), kept in alone.items():
                taken_s = self._copy([self._move(pages, down)])[0]
                kept.extend([taken_s] if turn else [])
            taken_s = max(self._copy([self._move(self.pages, down) for down in (False, True)]))
            both.extend([taken_s] if turn else [])
        return self._fit({size: midmean([*alone[size, False], *alone[size, True]]) for size in sizes}, midmean(both))

    def _fit(self, alone_s: dict[int, float], both_s: float) -> HostTimes:
        few, many = min(alone_s), max(alone_s)
        page_s = max((alone_s[many] - alone_s[few]) / (many - few), 1e-12)
        loss = 1.0 - alone_s[many] / both_s if both_s > 0 else 0.0
        return HostTimes(self._page_bytes / page_s, max(0.0, alone_s[few] - few * page_s), min(max(loss, 0.0), 0.9))

    def _copy(self, moves: Sequence[Move]) -> list[float]:
        """Submit ``moves`` at once; when each has ended, counted from then."""
        now_s = self._clock.now()
        transfers = [self._links.submit(move, now_s) for move in moves]
        while not all(transfer.done for transfer in transfers):
            self._links.wait()
            self._links.poll(self._clock.now())
        return [_end_s(transfer) - now_s for transfer in transfers]

    def _move(self, pages: int, down: bool) -> Move:
        """Scattered pages; the halves of the pools in use by the two directions are not the same."""
        low, high = (Tier.DEVICE, Tier.HOST) if down else (Tier.HOST, Tier.DEVICE)
        half = self.pages * down
        source, target = (half + self._random.permutation(self.pages)[:pages].astype(np.int32) for _ in range(2))
        keys = np.arange(1, pages + 1, dtype=np.int64)
        return Move(low, high, source.astype(np.int32), target.astype(np.int32), keys, keys - 1, "calibrate")


def _end_s(transfer: Transfer) -> float:
    assert transfer.end_s is not None
    return transfer.end_s


def measure_disk(folder: Path, page_bytes: int, repeats: int = 3) -> tuple[float, float, float]:
    """Bytes per second of reading and writing pages in ``folder``, and seconds that a page alone takes beside.

    Raises
    ------
    ValueError
        If the folder cannot be used or has no room.
    """
    from ..execution.disk import DiskPages

    pages = DiskPages.open(folder, 4096, page_bytes, "calibrate", persist=False)
    try:
        found = [pages.measure() for _ in range(repeats)]
    finally:
        pages.close()
    read, write, latency = (midmean([each[i] for each in found]) for i in range(3))
    return read, write, latency


def link_times(host: HostTimes | None, disk: tuple[float, float, float] | None) -> LinkTimes:
    """As the tables hold it; None: not measured."""
    read, write, latency = disk or (None, None, None)
    return LinkTimes(
        host_bytes_per_s=host.bytes_per_s if host else None,
        host_latency_s=host.latency_s if host else None,
        duplex_loss=host.duplex_loss if host else None,
        disk_read_bytes_per_s=read,
        disk_write_bytes_per_s=write,
        disk_latency_s=latency,
    )


def attempt(measure: Callable[[], tuple[float, float, float]]) -> tuple[tuple[float, float, float] | None, str | None]:
    """What ``measure`` finds, or why it could not."""
    try:
        return measure(), None
    except (OSError, ValueError) as error:
        return None, " ".join(str(error).split())
