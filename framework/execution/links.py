"""Links on a virtual clock: transfers are futures, queued by priority, and two directions slow each other down."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

from ..memory.moves import Move
from ..policy import Tier
from .hardware import Hardware
from .lanes import Job, Lane, Link
from .transfers import Transfer


class LinkSet:
    """All links of an instance under one virtual clock, which runs as far as it is asked to and never back.

    A link carries one transfer at a time, whole; what has started is not interrupted. A transfer enters a link's queue
    once all those that it follows have ended; urgent ones go first, then in the order given; those given at one time
    compete as if given at once. While both directions of a connection are taken, each runs at (1 - ``duplex_loss``) of
    its bandwidth. A transfer that yields does not start while the opposite direction is taken or has one queued that
    does not yield; of two that yield to each other the first in order goes. Deterministic; each event costs
    O(links + log queue).

    Raises
    ------
    ValueError
        If there are no links, or two of one name.
    """

    def __init__(self, links: Iterable[Link]) -> None:
        self._now_s = 0.0
        self._given = 0
        self._open: dict[Transfer, Job] = {}
        self._ended: deque[Transfer] = deque()
        self._waiting = False  # something may be able to start now
        self._lanes: dict[str, Lane] = {}
        for link in links:
            if link.name in self._lanes:
                raise ValueError(f"link {link.name!r} is given twice")
            self._lanes[link.name] = Lane(link)
        if not self._lanes:
            raise ValueError("a set of 0 links carries nothing; give 1 or more")
        for lane in self._lanes.values():
            lane.opposite = self._lanes.get(lane.link.opposite)
        self._all = tuple(self._lanes.values())

    @property
    def links(self) -> tuple[Link, ...]:
        """The links, in the order given."""
        return tuple(lane.link for lane in self._all)

    def enter(self, transfer: Transfer, route: Sequence[str], now_s: float, after: Sequence[Transfer] = ()) -> None:
        """Send ``transfer`` over the links named in ``route``, one after the other, once all of ``after`` have ended.

        It counts from the set's own clock where that is past ``now_s``.

        Raises
        ------
        ValueError
            For an unknown link or an empty route, a negative size, no layers, a time that is not finite, or one of
            ``after`` that has neither ended nor been entered here.
        """
        for name in route:
            if name not in self._lanes:
                raise ValueError(f"unknown link {name!r}; the links are {', '.join(self._lanes)}")
        if not route or transfer.num_bytes < 0 or transfer.layers < 1:
            sizes = f"num_bytes={transfer.num_bytes!r} must be >= 0, layers={transfer.layers!r} >= 1"
            raise ValueError(f"{sizes}, and a route of {len(route)} links >= 1")
        if now_s != self._now_s:  # else what was given at this time before has not begun
            self._advance(now_s)
        job = Job(transfer, tuple([self._lanes[name] for name in route]), self._given)
        for earlier in [self._job(earlier) for earlier in after if earlier.end_s is None]:
            earlier.next.append(job)
            job.blockers += 1
        self._given += 1
        self._open[transfer] = job
        for lane in job.hops:
            lane.due_bytes += transfer.num_bytes
        if not job.blockers:
            self._queue(job)

    def poll(self, now_s: float) -> list[Transfer]:
        """Run the clock to ``now_s``; the transfers that ended by then, since the last call, in order of their ends."""
        self._advance(now_s)
        ended, polled = self._ended, list[Transfer]()
        while ended and _end_s(ended[0]) <= now_s:
            polled.append(ended.popleft())
        return polled

    def next_end_s(self, now_s: float) -> float:
        """When a transfer ends next if none is entered before, or the first hop of one that has two (ask again then);
        ``now_s`` if one is uncollected, ``inf`` if nothing is on its way."""
        if self._ended:
            return max(now_s, _end_s(self._ended[0]))
        self._start()
        return max(now_s, self._next().end_s)

    def settle(self, transfers: Iterable[Transfer], now_s: float) -> None:
        """Run the clock on from ``now_s`` until all of ``transfers`` have ended: exact if nothing is entered before
        that. What ends on the way is still to be polled, once its time has come.

        Raises
        ------
        ValueError
            If one of them was not entered here.
        """
        open_ones = [self._job(transfer) for transfer in transfers if transfer.end_s is None]
        if open_ones:
            self._advance(now_s)
        for job in open_ones:
            while job.transfer.end_s is None:
                self._start()
                self._complete(self._next())

    def cancel(self, transfer: Transfer) -> bool:
        """Call ``transfer`` off if it has not begun; True if so. It has ended then, and is polled."""
        if transfer.end_s is not None or transfer.start_s is not None:
            return False
        job = self._job(transfer)
        transfer.cancelled = True
        for lane in job.hops:
            lane.due_bytes -= transfer.num_bytes
        self._end(job)
        return True

    def pending_bytes(self, link: str) -> float:
        """Bytes of all transfers on their way that have yet to cross ``link``."""
        return self._lanes[link].pending_bytes(self._now_s)

    def check(self) -> None:
        """Assert that no byte was lost or made, and that no link idles while a transfer could use it."""
        self._start()
        for lane in self._all:
            due = sum(job.transfer.num_bytes for job in self._open.values() if lane in job.hops)
            assert lane.due_bytes == due, lane.link.name
            assert 0 <= lane.pending_bytes(self._now_s) <= due
            assert lane.candidate() is None, lane.link.name
            assert lane.active is None or lane.end_s >= self._now_s

    def _job(self, transfer: Transfer) -> Job:
        job = self._open.get(transfer)
        if job is None:
            raise ValueError(f"the transfer on {transfer.move.link!r} was not submitted here")
        return job

    def _queue(self, job: Job) -> None:
        job.hops[0].queue(job)
        self._waiting = True

    def _end(self, job: Job) -> None:
        del self._open[job.transfer]
        job.transfer.end_s = self._now_s
        self._ended.append(job.transfer)
        for following in job.next:
            following.blockers -= 1
            if not following.blockers:
                self._queue(following)
        self._waiting = True

    def _advance(self, now_s: float) -> None:
        if not -math.inf < now_s < math.inf:
            raise ValueError(f"time {now_s!r} must be finite")
        if now_s >= self._now_s:
            self._start()
            while (lane := self._next()).end_s <= now_s:
                self._complete(lane)
                self._start()
            self._now_s = now_s

    def _start(self) -> None:
        """Let begin what can."""
        if not self._waiting:
            return
        self._waiting = False
        for lane in self._all:
            job = lane.candidate() if lane.plain or lane.yielding else None
            if job is None:
                continue
            rival = lane.opposite.candidate() if job.yields and lane.opposite is not None else None
            if rival is None or job.key < rival.key:  # a rival yields too, or this one could not start
                lane.begin(job, self._now_s)

    def _next(self) -> Lane:
        """The lane whose active job completes first; any that is idle if all are."""
        first = self._all[0]
        for lane in self._all:
            if lane.end_s < first.end_s:
                first = lane
        return first

    def _complete(self, lane: Lane) -> None:
        """The active job of ``lane`` has crossed it; it goes on to its next link, or has ended."""
        assert lane.active is not None
        self._now_s = lane.end_s
        job = lane.finish()
        job.hops = job.hops[1:]
        if job.hops:
            self._queue(job)
        else:
            self._end(job)
        self._waiting = True


def _end_s(transfer: Transfer) -> float:
    assert transfer.end_s is not None
    return transfer.end_s


def hardware_links(hardware: Hardware) -> tuple[Link, ...]:
    """The links of one instance: device and host, host and disk."""
    duplex_loss = hardware.duplex_loss
    return (
        Link("host->device", hardware.host_bytes_per_s, hardware.host_link_latency_s, duplex_loss),
        Link("device->host", hardware.host_bytes_per_s, hardware.host_link_latency_s, duplex_loss),
        Link("disk->host", hardware.disk_read_bytes_per_s, hardware.disk_latency_s, duplex_loss),
        Link("host->disk", hardware.disk_write_bytes_per_s, hardware.disk_latency_s, duplex_loss),
    )


class SimulatedLinks(LinkSet):
    """Implements :class:`~.transfers.Links` on a virtual clock: nothing is copied, nothing fails.

    What goes to the device arrives layer by layer, everything else whole. Between device and disk a move crosses the
    host, one link after the other.

    Parameters
    ----------
    page_bytes: of a page, all layers together.
    num_layers: of a page.

    Raises
    ------
    ValueError
        If ``page_bytes`` or ``num_layers`` is < 1.
    """

    def __init__(self, hardware: Hardware, page_bytes: int, num_layers: int) -> None:
        if page_bytes < 1 or num_layers < 1:
            raise ValueError(f"page_bytes={page_bytes!r} and num_layers={num_layers!r} must be >= 1")
        super().__init__(hardware_links(hardware))
        self._page_bytes, self._num_layers = page_bytes, num_layers
        tiers = (Tier.DEVICE, Tier.HOST, Tier.DISK)
        self._routes = {(a, b): _route(a, b) for a in tiers for b in tiers if a != b}

    def submit(self, move: Move, now_s: float, after: Sequence[Transfer] = ()) -> Transfer:
        """See :class:`~.transfers.Links`. A ``now_s`` before the set's own clock, which ran ahead, counts as that.

        Raises
        ------
        ValueError
            If no link leads from source to target, ``move.layers`` is no range of a page's layers, or one of
            ``after`` was not submitted here.
        """
        route = self._routes.get((move.source, move.target))
        if route is None:
            raise ValueError(f"no link carries {move.link!r}; tiers are device, host and disk, and they must differ")
        first, count = move.layers or (0, self._num_layers)
        if not 0 <= first < first + count <= self._num_layers:
            raise ValueError(f"layers={move.layers!r} must be (first, count) within {self._num_layers} layers")
        num_bytes = move.pages * self._page_bytes * count // self._num_layers
        transfer = Transfer(move, num_bytes, count if move.target == Tier.DEVICE else 1, now_s)
        self.enter(transfer, route, now_s, after)
        return transfer

    def wait(self, timeout_s: float | None = None) -> None:
        """Returns at once: on a virtual clock it is the clock that waits."""

    def problems(self) -> list[str]:
        """None: nothing fails here."""
        return []

    def closed(self) -> tuple[Tier, ...]:
        """None: nothing is ever full here."""
        return ()

    def close(self) -> None:
        """Nothing is held."""


def _route(source: Tier, target: Tier) -> tuple[str, ...]:
    step = 1 if target > source else -1
    names = [Tier(tier).name.lower() for tier in range(source, target + step, step)]
    return tuple(f"{names[i]}->{names[i + 1]}" for i in range(len(names) - 1))
