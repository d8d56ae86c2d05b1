"""Calibrating beside the runs: batches are timed between the rounds, so that both see the same machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..backends import Backend, open_backend
from ..calibrate.design import Limits
from ..calibrate.engine_time import Between, fit_engine_time
from ..calibrate.fitting import fit_steps
from ..calibrate.link_times import HostTimes, attempt, link_times, measure_disk
from ..calibrate.machine import copy_bytes_per_s, measured_hardware, memory_sizes
from ..calibrate.measure import (
    SEED_SHIFT,
    engine_workload,
    fill_pool,
    fit_limits,
    measure_host,
    one_tier,
    source_of,
    step_timer,
    torch_executor,
)
from ..calibrate.serving import watch_engine
from ..calibrate.simulation import simulated
from ..calibrate.steps import MIN_PASSES, StepTimer, mean, midmean
from ..composition import Parts, TorchBackend
from ..execution.hardware import Hardware
from ..execution.tables import OperatorTables
from ..opening import open_workload
from ..workloads.conversation import Workload
from ..workloads.synthetic import SyntheticChat


@dataclass
class Bench:
    """A model with a pool of its own, whose batches are timed; one for each way in which keys are cached."""

    parts: Parts
    backend: Backend
    timer: StepTimer
    hosts: list[HostTimes] = field(default_factory=list)

    @classmethod
    def open(cls, parts: Parts, limits: Limits) -> Bench:
        """Load the model of ``parts``."""
        own = one_tier(parts)
        backend = open_backend(own)
        fill_pool(backend)
        return cls(own, backend, step_timer(backend, fit_limits(limits, backend), own.memory.page_size, own.seed))

    def link(self) -> None:
        """Time the host's link."""
        self.hosts.append(measure_host(torch_executor(self.backend), self.backend.page_bytes))

    def tables(self, disk: tuple[float, float, float] | None) -> OperatorTables:
        """Of the model alone: what the engine takes is each system's own.

        Means: the runs that are held against them meet other processes too.
        """
        steps = fit_steps(self.timer.times_s, mean)
        host = HostTimes(*(midmean([getattr(h, name) for h in self.hosts]) for name in HostTimes.__slots__))
        return OperatorTables(
            source=source_of(self.parts, self.backend),
            shape=self.backend.shape,
            dense=steps.dense,
            head=steps.head,
            attention=steps.attention,
            links=link_times(host, disk),
        )


class Calibrator:
    """Everything that the simulations of several systems need, measured on other requests than those of their runs."""

    def __init__(self, contestants: list[Parts], limits: Limits, folder: Path) -> None:
        self._folder = folder
        self._benches: dict[bool, Bench] = {}
        self._between: dict[int, list[Between]] = {}
        self._disk: tuple[float, float, float] | None = None
        for parts in contestants:
            key = _decoupled(parts)
            if key not in self._benches:
                self._benches[key] = Bench.open(parts, limits)
        disk_tokens = contestants[0].memory.disk_tokens
        if disk_tokens:
            page_bytes = self._benches[_decoupled(contestants[0])].backend.page_bytes
            self._disk = attempt(lambda: measure_disk(folder / "probe", page_bytes))[0]

    @property
    def batches(self) -> int:
        """Of one pass of all models."""
        return sum(len(bench.timer.probes) for bench in self._benches.values())

    def warm_up(self, on_step: Callable[[], None]) -> None:
        """Run all batches once."""
        for bench in self._benches.values():
            bench.timer.warm_up(on_step)

    def slice(self, seconds: float) -> None:
        """Time batches for about ``seconds``."""
        for bench in self._benches.values():
            bench.timer.run(seconds / len(self._benches))

    def links(self) -> None:
        """Time the host's link."""
        for bench in self._benches.values():
            bench.link()

    def complete(self) -> None:
        """Time the batches that have been timed too seldom."""
        for bench in self._benches.values():
            bench.timer.complete(MIN_PASSES)

    def engine(self, number: int, parts: Parts) -> None:
        """Serve other requests with the system ``number`` to see what its engine takes."""
        backend = open_backend(parts, self._folder / "engine")
        try:
            found = watch_engine(parts, backend, other_workload(parts, backend))
        finally:
            backend.close()
        self._between.setdefault(number, []).extend(found)

    def simulation(self, number: int, parts: Parts, folder: Path) -> Parts:
        """The simulation of the system ``number``; its tables are left in ``folder``."""
        bench = self._benches[_decoupled(parts)]
        tables = fit_engine_time(self._between[number], kept=1.0).on(bench.tables(self._disk))
        tables.save(folder)
        return simulated(parts, tables.shape, self._hardware(parts.hardware, bench, tables), folder)

    def _hardware(self, base: Hardware, bench: Bench, tables: OperatorTables) -> Hardware:
        pool = torch_executor(bench.backend).pool
        device, host = memory_sizes(pool)
        sized = replace(base, memory_bytes=device, host_memory_bytes=host)
        return measured_hardware(sized, "calibrated", tables, copy_bytes_per_s(pool))

    def close(self) -> None:
        """Free the models."""
        for bench in self._benches.values():
            bench.backend.close()


def other_workload(parts: Parts, backend: Backend) -> Workload:
    """Requests like those of ``parts`` that are none of them: synthetic chats of another seed."""
    if not isinstance(parts.workload, SyntheticChat):
        return engine_workload(parts, backend)
    limit = parts.workload.limit or 8
    own = replace(parts, workload=replace(parts.workload, limit=max(2, limit // 4)), seed=parts.seed + SEED_SHIFT)
    return open_workload(own, backend.shape.vocab_size, backend.tokenizer)


def _decoupled(parts: Parts) -> bool:
    return isinstance(parts.backend, TorchBackend) and parts.backend.decoupled
