"""All that ``task=calibrate`` measures, in order: batches, the engine around them, memory and links."""

from __future__ import annotations

import platform
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ..backends import Backend, open_backend
from ..composition import Parts, TorchBackend
from ..execution.capacity import free_bytes
from ..execution.shapes import DTYPE_BYTES
from ..execution.tables import OperatorTables
from ..opening import open_workload
from ..progress import WorkProgress
from ..schema import ConfigError
from ..workloads.conversation import Workload
from ..workloads.synthetic import SyntheticChat
from .design import Limits, Probe, check_probes, largest, table_probes
from .engine_time import EngineTime, fit_engine_time
from .fitting import StepTables, fit_steps
from .link_times import HostLink, HostTimes, attempt, link_times, measure_disk
from .machine import copy_bytes_per_s, memory_sizes
from .serving import watch_engine
from .steps import StepTimer, timed

if TYPE_CHECKING:
    from ..execution.torch_executor import TorchExecutor

POOL_TOKENS = 65_536
SEED_SHIFT = 7919  # the calibration's own requests: those of no test with a seed below it


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes
    ----------
    passes: how often each batch ran. times_s: what each run of each took.
    disk: bytes/s of reading and writing and seconds of a page alone; None: not measured, and ``problems`` says why.
    memory_bytes_per_s: of a copy in the device's memory, read and written.
    """

    passes: int
    times_s: dict[Probe, list[float]]
    steps: StepTables
    engine: EngineTime
    host: HostTimes
    disk: tuple[float, float, float] | None
    memory_bytes_per_s: float
    problems: tuple[str, ...] = ()

    def tables(self, backend: Backend, source: str) -> OperatorTables:
        """As the simulator takes it."""
        steps, links = self.steps, link_times(self.host, self.disk)
        found = OperatorTables(source, backend.shape, 1, steps.dense, steps.head, steps.attention, links=links)
        return self.engine.on(found)


def one_tier(parts: Parts) -> Parts:
    """``parts`` with a device tier alone, of a size that is free: what is timed is the model, not the hierarchy."""
    memory = replace(parts.memory, host_tokens=0, disk_tokens=0, disk_dir=None, disk_persist=False)
    if memory.device_tokens is None and isinstance(parts.backend, TorchBackend):
        free_tokens = free_bytes(parts.backend.device) // _kv_bytes(parts)
        memory = replace(memory, device_tokens=max(memory.page_size, min(POOL_TOKENS, free_tokens)))
    return replace(parts, memory=memory)


def _kv_bytes(parts: Parts) -> int:
    """An upper bound of a token's K/V where the model is known before it is loaded."""
    model = parts.model_knobs
    sizes = [model.get(name) for name in ("num_layers", "num_heads", "hidden_size")]
    if not all(isinstance(size, int) for size in sizes):
        return 2**20
    layers, heads, hidden = (int(size) for size in sizes if size is not None)
    head_dim = model.get("head_dim") or hidden // heads
    return 2 * layers * heads * int(head_dim) * max(DTYPE_BYTES.values())


def fit_limits(limits: Limits, backend: Backend) -> Limits:
    """``limits`` within the positions of the model."""
    most = backend.max_tokens or limits.context + limits.tokens
    context = min(limits.context, most // 2)
    return replace(limits, context=context, tokens=min(limits.tokens, most - context))


def torch_executor(backend: Backend) -> TorchExecutor:
    """The executor of a torch backend."""
    from ..execution.torch_executor import TorchExecutor

    executor = backend.executor
    assert isinstance(executor, TorchExecutor)
    return executor


def fill_pool(backend: Backend) -> None:
    """Write all of the device's K/V once: memory that was never written is neither there nor slow."""
    torch_executor(backend).pool.uniform_(-1.0, 1.0)


def step_timer(backend: Backend, limits: Limits, page_size: int, seed: int) -> StepTimer:
    """What times all batches within ``limits`` on ``backend``."""
    probes = [*table_probes(limits), *check_probes(limits)]
    pages, vocab_size = backend.num_pages, backend.shape.vocab_size
    if largest(probes) // page_size > 64 * pages:
        raise ConfigError(
            f"memory.device_tokens: {pages} pages are too few to time batches of {largest(probes)} tokens"
        )
    return StepTimer(backend.executor, probes, pages, page_size, vocab_size, seed)


def engine_workload(parts: Parts, backend: Backend) -> Workload:
    """A few short chats of their own seed, of which several run at a time."""
    room = backend.num_pages * parts.memory.page_size
    longest = max(64, min(2048, room // 2, (backend.max_tokens or room) - 1))
    knobs = SyntheticChat(
        limit=8,
        rate=None,
        think_time_s=0.0,
        input_scale=2.0,
        output_scale=0.1,
        min_turns=3,
        max_turns=4,
        max_context=longest,
    )
    own = replace(parts, workload=knobs, seed=parts.seed + SEED_SHIFT)
    return open_workload(own, backend.shape.vocab_size, backend.tokenizer)


def measure_all(
    parts: Parts, limits: Limits, seconds: float, disk_folder: Path, progress: WorkProgress
) -> tuple[Measured, OperatorTables, tuple[int, int]]:
    """Measure the machine for about ``seconds`` and a little more; what was found, its tables, and how many bytes the
    device's and the host's memory have.

    Raises
    ------
    ConfigError
        If the model cannot be loaded, or its K/V do not fit.
    """
    parts = one_tier(parts)
    backend = open_backend(parts)
    try:
        found = _measure(parts, backend, limits, seconds, disk_folder, progress)
        sizes = memory_sizes(torch_executor(backend).pool)
        return found, found.tables(backend, source_of(parts, backend)), sizes
    finally:
        backend.close()


def _measure(
    parts: Parts, backend: Backend, limits: Limits, seconds: float, disk_folder: Path, progress: WorkProgress
) -> Measured:
    executor = torch_executor(backend)
    fill_pool(backend)
    timer = step_timer(backend, fit_limits(limits, backend), parts.memory.page_size, parts.seed)
    progress.note("batches")
    timed(timer, seconds, progress.advance, progress.plan)
    progress.note("engine")
    between = watch_engine(parts, backend, engine_workload(parts, backend))
    progress.note("links")
    host = measure_host(executor, backend.page_bytes)
    disk, problem = attempt(lambda: measure_disk(disk_folder, backend.page_bytes))
    return Measured(
        timer.passes,
        timer.times_s,
        fit_steps(timer.times_s),
        fit_engine_time(between),
        host,
        disk,
        copy_bytes_per_s(executor.pool),
        (f"the disk was not measured: {problem}",) if problem else (),
    )


def measure_host(executor: TorchExecutor, page_bytes: int) -> HostTimes:
    """The link between the device of ``executor`` and the host."""
    link = HostLink(executor, page_bytes)
    try:
        return link.measure()
    finally:
        link.close()


def source_of(parts: Parts, backend: Backend) -> str:
    """Who measured what, on what, when; one line."""
    import torch

    knobs = parts.backend
    assert isinstance(knobs, TorchBackend)
    executor = torch_executor(backend)
    where = torch.cuda.get_device_name(knobs.device) if knobs.device.startswith("cuda") else cpu_name()
    cores = torch.get_num_threads()
    threads = "" if knobs.device.startswith("cuda") else f", {cores} thread{'s' * (cores > 1)}"
    dtype = str(executor.pool.dtype).removeprefix("torch.")
    positions = ", decoupled positions" if knobs.decoupled else ""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return f"kvarena {version('kvarena')}, {backend.shape.name} in {dtype} on {where}{threads}{positions}, {when}"


def cpu_name() -> str:
    """What the system calls its processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
