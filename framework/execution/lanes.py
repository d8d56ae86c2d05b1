"""One link on a virtual clock: its queues, the transfer that occupies it, and when that arrives."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from .transfers import Transfer


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


class Job:
    """A transfer that has not ended: the lanes it has yet to cross, ``hops``, and the jobs that follow it, ``next``."""

    __slots__ = ("blockers", "hops", "key", "next", "transfer", "yields")

    def __init__(self, transfer: Transfer, hops: tuple[Lane, ...], order: int) -> None:
        self.transfer = transfer
        self.hops = hops
        self.key = (not transfer.move.urgent, order)  # unique: heaps never compare jobs
        self.yields = transfer.move.yields
        self.blockers = 0
        self.next: list[Job] = []


class Lane:
    """The queues of one link and the job that occupies it.

    ``end_s`` is when the active job completes at the present rate. What has moved is counted only where the rate
    changes, so that results do not depend on how often somebody looks.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.opposite: Lane | None = None
        self.plain: list[tuple[tuple[bool, int], Job]] = []
        self.yielding: list[tuple[tuple[bool, int], Job]] = []
        self.active: Job | None = None
        self.end_s = math.inf
        self.due_bytes = 0  # of all jobs that are to cross it
        self._pieces: list[tuple[float, float, float]] = []  # (from when, bytes moved by then, bytes/s from then)

    @property
    def rate(self) -> float:
        contended = self.opposite is not None and self.opposite.active is not None
        return self.link.bytes_per_s * (1.0 - self.link.duplex_loss if contended else 1.0)

    def queue(self, job: Job) -> None:
        heapq.heappush(self.yielding if job.yields else self.plain, (job.key, job))

    def candidate(self) -> Job | None:
        """Who would start now, as far as this direction alone can tell."""
        if self.active is not None:
            return None
        plain = _first(self.plain)
        if self.yielding and (other := _first(self.yielding)) is not None:
            blocked = self.opposite is not None and self.opposite.busy
            if not blocked and (plain is None or other.key < plain.key):
                return other
        return plain

    @property
    def busy(self) -> bool:
        """Yielding transfers of the other direction must wait."""
        return self.active is not None or _first(self.plain) is not None

    def begin(self, job: Job, now_s: float) -> None:
        """Start ``job``, the candidate."""
        heapq.heappop(self.yielding if job.yields else self.plain)
        self.active = job
        if job.transfer.start_s is None:
            job.transfer.start_s = now_s
        self._pieces = [(now_s + self.link.latency_s, 0.0, self.rate)]
        self._expect()
        if self.opposite is not None:
            self.opposite.change_rate(now_s)

    def change_rate(self, now_s: float) -> None:
        """The other direction has begun or ended something."""
        if self.active is None:
            return
        since_s, moved, before = self._pieces[-1]
        rate = self.rate
        if rate == before:
            return
        if now_s <= since_s:
            self._pieces[-1] = (since_s, moved, rate)
        else:
            self._pieces.append((now_s, self._moved(now_s), rate))
        self._expect()

    def finish(self) -> Job:
        """Take the active job, which ends now, off the link; its last hop says when its layers arrived."""
        job, end_s = self.active, self.end_s
        assert job is not None
        if len(job.hops) == 1:
            job.transfer.layer_ends_s = _arrivals(self._pieces, job.transfer.num_bytes, job.transfer.layers, end_s)
        self.active, self.end_s = None, math.inf
        self.due_bytes -= job.transfer.num_bytes
        if self.opposite is not None:
            self.opposite.change_rate(end_s)
        return job

    def pending_bytes(self, now_s: float) -> float:
        return self.due_bytes - (0.0 if self.active is None else self._moved(now_s))

    def _moved(self, now_s: float) -> float:
        assert self.active is not None
        since_s, moved, rate = self._pieces[-1]
        return min(float(self.active.transfer.num_bytes), moved + max(0.0, now_s - since_s) * rate)

    def _expect(self) -> None:
        assert self.active is not None
        since_s, moved, rate = self._pieces[-1]
        self.end_s = since_s + (self.active.transfer.num_bytes - moved) / rate


def _first(heap: list[tuple[tuple[bool, int], Job]]) -> Job | None:
    """The first job of ``heap`` that was not called off."""
    while heap and heap[0][1].transfer.cancelled:
        heapq.heappop(heap)
    return heap[0][1] if heap else None


def _arrivals(pieces: list[tuple[float, float, float]], num_bytes: int, layers: int, end_s: float) -> list[float]:
    """When each of the equal parts of a copy arrived that ran in ``pieces`` of constant rate and ended at ``end_s``."""
    if layers == 1:
        return [end_s]
    part, ends = num_bytes / layers, list[float]()
    if len(pieces) == 1:
        since_s, _, rate = pieces[0]
        return [*[since_s + k * part / rate for k in range(1, layers)], end_s]
    for i, (since_s, moved, rate) in enumerate(pieces):
        last = i + 1 == len(pieces)
        until_s, by_then = (end_s, math.inf) if last else pieces[i + 1][:2]
        stop = layers if last or not part else min(layers, int(by_then / part) + 1)
        ends += [min(until_s, since_s + max(0.0, k * part - moved) / rate) for k in range(len(ends) + 1, stop)]
    return [*ends, end_s]
