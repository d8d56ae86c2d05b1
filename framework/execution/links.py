"""Links on a virtual clock: transfers are futures, queued by priority, and two directions slow each other down."""

from __future__ import annotations

import copy
import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .hardware import Hardware


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a connection, named ``source->destination``.

    Attributes
    ----------
    bytes_per_s: bandwidth while the other direction is idle.
    latency_s: set-up time of each transfer; the link is taken meanwhile.
    duplex_loss: share of the bandwidth lost while a transfer occupies the opposite direction.
    """

    name: str
    bytes_per_s: float
    latency_s: float = 0.0
    duplex_loss: float = 0.0

    def __post_init__(self) -> None:
        if self.name.count("->") != 1:
            raise ValueError(f"link name {self.name!r} must read 'source->destination'")
        if not 0 < self.bytes_per_s < math.inf:
            raise ValueError(f"link {self.name!r}: bytes_per_s={self.bytes_per_s!r} must be in (0, inf)")
        if not 0 <= self.latency_s < math.inf:
            raise ValueError(f"link {self.name!r}: latency_s={self.latency_s!r} must be in [0, inf)")
        if not 0 <= self.duplex_loss < 1:
            raise ValueError(f"link {self.name!r}: duplex_loss={self.duplex_loss!r} must be in [0, 1)")

    @property
    def opposite(self) -> str:
        """Name of the other direction."""
        source, destination = self.name.split("->")
        return f"{destination}->{source}"


@dataclass(slots=True, eq=False)
class Transfer:
    """A copy on its way; only :class:`LinkSet` changes it.

    Attributes
    ----------
    start_s, end_s: when it got the link and when its last byte arrived; None before.
    layer_ends_s: when each of the ``layers`` equal parts arrived, so far.
    moved_bytes: bytes that have arrived.
    """

    link: str
    num_bytes: int
    priority: int
    layers: int
    submitted_s: float
    start_s: float | None = None
    end_s: float | None = None
    layer_ends_s: list[float] = field(default_factory=list)
    moved_bytes: float = 0.0

    @property
    def done(self) -> bool:
        """True once the last byte arrived."""
        return self.end_s is not None


class _Lane:
    """The queue of one link and the transfer that occupies it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.opposite: _Lane | None = None
        self.queue: list[tuple[int, int, Transfer]] = []
        self.active: Transfer | None = None
        self.setup_left_s = 0.0
        self.submitted_bytes = 0
        self.completed_bytes = 0

    @property
    def rate(self) -> float:
        contended = self.opposite is not None and self.opposite.active is not None
        return self.link.bytes_per_s * (1.0 - self.link.duplex_loss if contended else 1.0)

    def completion_s(self, now_s: float) -> float:
        if self.active is None:
            return math.inf
        return now_s + self.setup_left_s + max(0.0, self.active.num_bytes - self.active.moved_bytes) / self.rate

    def start_next(self, now_s: float) -> None:
        if self.active is None and self.queue:
            self.active = heapq.heappop(self.queue)[2]
            self.active.start_s = now_s
            self.setup_left_s = self.link.latency_s

    def move(self, now_s: float, duration_s: float) -> None:
        """Carry the active transfer from ``now_s`` over ``duration_s``; its rate does not change meanwhile."""
        if self.active is None:
            return
        setup_s = min(self.setup_left_s, duration_s)
        self.setup_left_s -= setup_s
        transfer, rate, before = self.active, self.rate, self.active.moved_bytes
        transfer.moved_bytes = min(float(transfer.num_bytes), before + (duration_s - setup_s) * rate)
        if self.setup_left_s:
            return
        ends, part = transfer.layer_ends_s, transfer.num_bytes / transfer.layers
        while len(ends) < transfer.layers - 1 and (len(ends) + 1) * part <= transfer.moved_bytes:
            arrived_s = now_s + setup_s + ((len(ends) + 1) * part - before) / rate
            ends.append(max(arrived_s, ends[-1] if ends else now_s))

    def finish(self, now_s: float) -> Transfer:
        assert self.active is not None
        transfer, self.active = self.active, None
        transfer.moved_bytes, transfer.end_s = float(transfer.num_bytes), now_s
        transfer.layer_ends_s = [min(end_s, now_s) for end_s in transfer.layer_ends_s]
        transfer.layer_ends_s += [now_s] * (transfer.layers - len(transfer.layer_ends_s))
        self.completed_bytes += transfer.num_bytes
        return transfer


class LinkSet:
    """All links of an instance under one virtual clock.

    A link carries one transfer at a time, whole: the smallest ``priority`` first, then first come, first served; what
    has started is not interrupted. While both directions of a connection are taken, each runs at (1 - ``duplex_loss``)
    of its bandwidth. Deterministic; each event costs O(links + log queue).
    """

    def __init__(self, links: Iterable[Link]) -> None:
        self._now_s = 0.0
        self._submitted = 0
        self._finished: list[Transfer] = []
        self._lanes: dict[str, _Lane] = {}
        for link in links:
            if link.name in self._lanes:
                raise ValueError(f"link {link.name!r} is given twice")
            self._lanes[link.name] = _Lane(link)
        for lane in self._lanes.values():
            lane.opposite = self._lanes.get(lane.link.opposite)

    @property
    def links(self) -> tuple[Link, ...]:
        """The links, in the order given."""
        return tuple(lane.link for lane in self._lanes.values())

    def submit(self, now_s: float, link: str, num_bytes: int, priority: int = 0, layers: int = 1) -> Transfer:
        """Queue ``num_bytes`` in ``layers`` equal parts on ``link`` at ``now_s``; the result is a future.

        Raises
        ------
        ValueError
            For an unknown link, ``num_bytes`` < 0, ``layers`` < 1, or a time before one already seen.
        """
        if link not in self._lanes:
            raise ValueError(f"unknown link {link!r}; the links are {', '.join(self._lanes)}")
        if num_bytes < 0 or layers < 1:
            raise ValueError(f"num_bytes={num_bytes!r} must be >= 0 and layers={layers!r} >= 1")
        self._advance(now_s)
        lane, transfer = self._lanes[link], Transfer(link, int(num_bytes), priority, layers, now_s)
        self._submitted += 1
        lane.submitted_bytes += transfer.num_bytes
        heapq.heappush(lane.queue, (priority, self._submitted, transfer))
        lane.start_next(now_s)
        return transfer

    def advance(self, now_s: float) -> list[Transfer]:
        """Move the clock to ``now_s``; the transfers that completed since the last call, in order of completion."""
        self._advance(now_s)
        finished, self._finished = self._finished, []
        return finished

    def next_event_s(self) -> float:
        """When a transfer completes next if none is submitted before; now, if one is uncollected; inf if idle."""
        return self._now_s if self._finished else self._next_completion()[0]

    def forecast(self, transfer: Transfer) -> Transfer:
        """A copy of ``transfer`` with the times it will have if nothing more is submitted. O(queued transfers)."""
        if transfer.done:
            return copy.deepcopy(transfer)
        memo: dict[int, Any] = {}
        ahead = copy.deepcopy(self, memo)
        if id(transfer) not in memo:
            raise ValueError(f"the transfer on {transfer.link!r} was not submitted here")
        future: Transfer = memo[id(transfer)]
        while not future.done:
            ahead._advance(ahead._next_completion()[0])
        return future

    def pending_bytes(self, link: str) -> float:
        """Bytes submitted on ``link`` that have not arrived."""
        lane = self._lanes[link]
        return lane.submitted_bytes - lane.completed_bytes - (lane.active.moved_bytes if lane.active else 0.0)

    def check(self) -> None:
        """Assert that no byte was lost or made, and that no link idles while transfers wait for it."""
        for lane in self._lanes.values():
            waiting = [transfer for _, _, transfer in lane.queue] + ([lane.active] if lane.active else [])
            assert lane.submitted_bytes == lane.completed_bytes + sum(transfer.num_bytes for transfer in waiting)
            assert lane.active is not None or not lane.queue, lane.link.name
            assert lane.active is None or 0 <= lane.active.moved_bytes <= lane.active.num_bytes

    def _next_completion(self) -> tuple[float, _Lane | None]:
        first_s, first = math.inf, None
        for lane in self._lanes.values():
            end_s = lane.completion_s(self._now_s)
            if end_s < first_s:
                first_s, first = end_s, lane
        return first_s, first

    def _advance(self, now_s: float) -> None:
        if not self._now_s <= now_s < math.inf:
            raise ValueError(f"time {now_s!r} must be finite and not before {self._now_s!r}")
        while True:
            end_s, lane = self._next_completion()
            if lane is None or end_s > now_s:
                break
            self._move_all(end_s)
            self._finished.append(lane.finish(end_s))
            lane.start_next(end_s)
        self._move_all(now_s)

    def _move_all(self, now_s: float) -> None:
        for lane in self._lanes.values():
            lane.move(self._now_s, now_s - self._now_s)
        self._now_s = now_s


def hardware_links(hardware: Hardware) -> tuple[Link, ...]:
    """The links of one instance: device and host, host and disk."""
    duplex_loss = hardware.duplex_loss
    return (
        Link("host->device", hardware.host_bytes_per_s, hardware.host_link_latency_s, duplex_loss),
        Link("device->host", hardware.host_bytes_per_s, hardware.host_link_latency_s, duplex_loss),
        Link("disk->host", hardware.disk_read_bytes_per_s, hardware.disk_latency_s, duplex_loss),
        Link("host->disk", hardware.disk_write_bytes_per_s, hardware.disk_latency_s, duplex_loss),
    )
