"""The same run on the virtual clock, with the times that were measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..composition import Parts, TorchBackend
from ..execution.contract import ModelShape
from ..execution.hardware import Hardware
from ..execution.simulated import SimulatedBackend


def simulated(parts: Parts, shape: ModelShape, hardware: Hardware, tables: Path) -> Parts:
    """``parts`` of a real run, on the simulated backend: nothing else differs."""
    decoupled = isinstance(parts.backend, TorchBackend) and parts.backend.decoupled
    backend = SimulatedBackend(decoupled=decoupled, tables=str(tables))
    return replace(parts, backend=backend, hardware=hardware, shape=shape, model=None)
