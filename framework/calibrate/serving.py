"""Serving a workload with the parts of ``task=serve``, its rows kept in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..backends import Backend
from ..composition import Parts
from ..metrics import KeptRecords
from ..serve import Server
from ..session import Progress
from ..workloads.conversation import Workload
from .engine_time import Between, Watched, WatchedLinks


def watch_engine(
    parts: Parts, backend: Backend, workload: Workload, on_progress: Callable[[Progress], None] = lambda stage: None
) -> list[Between]:
    """Serve ``workload`` on ``backend``, which stays open; what the engine took between iterations."""
    links = WatchedLinks(backend.links) if backend.links is not None else None
    watched = Watched(backend.executor, links)
    Server(parts, replace(backend, executor=watched, links=links), workload).run(KeptRecords(), on_progress)
    return watched.between
