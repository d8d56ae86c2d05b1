"""Serving a workload with the parts of ``task=serve``, its rows kept in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..backends import Backend
from ..composition import Parts
from ..metrics.records import RequestRecord, StepRecord, TransferRecord
from ..serve import Server
from ..session import Progress
from ..workloads.conversation import Workload
from .engine_time import Between, Watched, WatchedLinks


@dataclass
class Rows:
    """A recorder that keeps what it is given."""

    requests: list[RequestRecord] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    transfers: list[TransferRecord] = field(default_factory=list)

    def request(self, record: RequestRecord) -> None:
        """A request finished or failed."""
        self.requests.append(record)

    def step(self, record: StepRecord) -> None:
        """An iteration was executed."""
        self.steps.append(record)

    def transfer(self, record: TransferRecord) -> None:
        """A copy ended."""
        self.transfers.append(record)


def watch_engine(
    parts: Parts, backend: Backend, workload: Workload, on_progress: Callable[[Progress], None] = lambda stage: None
) -> list[Between]:
    """Serve ``workload`` on ``backend``, which stays open; what the engine took between iterations."""
    links = WatchedLinks(backend.links) if backend.links is not None else None
    watched = Watched(backend.executor, links)
    Server(parts, replace(backend, executor=watched, links=links), workload).run(Rows(), on_progress)
    return watched.between
