"""From checked parts to what computes and copies: a backend's executor, links and clock, and how many pages it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .composition import Parts, TorchBackend
from .execution.capacity import Room, device_pages, free_bytes, host_room, lower_pages
from .execution.clocks import SkipIdleClock, VirtualClock, WallClock
from .execution.contract import Clock, Executor, ModelShape
from .execution.links import SimulatedLinks
from .execution.simulated import SimulatedBackend, SimulatedExecutor
from .execution.simulated_narrowing import SimulatedNarrowing
from .execution.tables import load_tables
from .execution.threads import spin_briefly
from .execution.transfers import Links
from .footprint import Window
from .opening import cache_shape, footprint_of
from .policy import Tier
from .sharing import find_sharing, native, shared_shape, simulated_sharing
from .workloads.tokenizer import Tokenizer

if TYPE_CHECKING:
    from .execution.disk import DiskPages
    from .execution.models import LoadedModel
    from .execution.torch_executor import TorchExecutor


class Disk(Protocol):
    """What a run wants of a real disk tier, beyond what the links do with it."""

    @property
    def faults(self) -> dict[str, int]:
        """Pages that failed so far, by kind."""
        ...

    def stored(self) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """Slots, keys and parents of the pages that an earlier run left."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """What computes, and what copies.

    Attributes
    ----------
    pages: of each tier that there is. page_bytes: of a page, all layers together.
    links: between the tiers; None where there is one tier only.
    disk: a real disk tier, or None.
    max_tokens: positions of the model; None: it takes any number.
    tokenizer: the model's own.
    times_from: which measured tables the simulated times came from and to what share, None if none.
    sharing: layers that store no K/V, each with the one whose K/V it uses; None where the run's compression lets none.
    """

    executor: Executor
    clock: Clock
    shape: ModelShape
    pages: Mapping[Tier, int]
    page_bytes: int
    links: Links | None = None
    disk: Disk | None = None
    max_tokens: int | None = None
    tokenizer: Tokenizer | None = None
    times_from: Callable[[], dict[str, Any] | None] = lambda: None
    sharing: Mapping[int, int] | None = None

    @property
    def layer_map(self) -> dict[str, int] | None:
        """``sharing`` as a summary says it."""
        return None if self.sharing is None else {str(layer): source for layer, source in self.sharing.items()}

    @property
    def num_pages(self) -> int:
        """Of the device tier."""
        return self.pages[Tier.DEVICE]

    def tier_bytes(self, tier: Tier) -> int:
        """Capacity of ``tier``; 0 if there is none."""
        return self.pages.get(tier, 0) * self.page_bytes

    def finish_copies(self) -> list[str]:
        """End all copies and close the lower tiers; may be called again. Returns what went wrong, one line each."""
        if self.links is None:
            return []
        self.links.close()
        return list(dict.fromkeys(self.links.problems()))

    def close(self) -> None:
        """Free what is held."""
        self.finish_copies()
        self.executor.close()


def window_of(parts: Parts, backend: Backend) -> Window:
    """How long a context may be on ``backend``."""
    room = backend.num_pages * parts.memory.page_size
    return Window(room, backend.max_tokens, parts.policies.truncation, footprint_of(parts, backend.shape))


def open_backend(parts: Parts, folder: Path | None = None) -> Backend:
    """Load the model, or the cost model, and make room for all tiers. ``folder``: the run's own.

    Raises
    ------
    ValueError
        If the model cannot be loaded, or model and pages do not fit, or the disk tier's folder is not fit for it.
    """
    if isinstance(parts.backend, TorchBackend):
        return _torch(parts, parts.backend, folder)
    return _simulated(parts, parts.backend)


def _simulated(parts: Parts, knobs: SimulatedBackend) -> Backend:
    hardware, size, compression = parts.hardware, parts.memory.page_size, parts.policies.compression
    assert parts.shape is not None
    whole = native(parts.shape)
    sharing = simulated_sharing(compression, whole)
    shape = shared_shape(whole, sharing)
    _bind(parts, shape)
    tables = load_tables(Path(knobs.tables).expanduser(), shape, hardware) if knobs.tables else None
    hardware = hardware if tables is None else tables.links.on(hardware)
    free = hardware.free_bytes(shape.weight_bytes)
    kv_bytes = (whole.kv_bytes_per_token, shape.kv_bytes_per_token)
    num_pages = device_pages(parts.memory.device_tokens, size, kv_bytes[0], free, kv_bytes[1])
    room = Room(hardware.host_memory_bytes, hardware.host_memory_bytes)
    pages = {Tier.DEVICE: num_pages, **_lower(parts, kv_bytes, room)}
    page_bytes = size * shape.kv_bytes_per_token
    links = SimulatedLinks(hardware, page_bytes, shape.stored_layers) if len(pages) > 1 else None
    footprint = footprint_of(parts, shape)
    executor = SimulatedExecutor(
        *(shape, hardware, size),
        max_steps=knobs.max_steps,
        links=links,
        tables=tables,
        narrowing=None if footprint is None else SimulatedNarrowing(footprint),
    )
    # Traces may be longer than the model's positions; a truncation needs to know them.
    longest = None if parts.policies.truncation.name == "none" else shape.max_positions
    return Backend(
        *(executor, VirtualClock(), shape, pages, page_bytes, links),
        max_tokens=longest,
        times_from=executor.times_from,
        sharing=sharing if compression.shares else None,
    )


def _bind(parts: Parts, shape: ModelShape, model: LoadedModel | None = None) -> None:
    """Tell a token-level policy what it works on; ``model``: what computes, if anything does."""
    if (truncation := parts.lossy.truncation) is not None:
        rotation = None
        if model is not None and truncation.needs.queries:
            from .execution.rotation import rotation_of

            rotation = rotation_of(model)
        truncation.bind(cache_shape(shape, rotation))


def _lower(parts: Parts, kv_bytes: tuple[int, int], host: Room) -> dict[Tier, int]:
    """Pages of the tiers below the device; without a write-back to fill them there are none. ``kv_bytes``: of a token,
    of all layers and of those that store."""
    memory = parts.memory
    if not parts.tiered:
        return {}
    pages = {
        Tier.HOST: lower_pages("host", memory.host_tokens, memory.page_size, kv_bytes[0], host, kv_bytes[1]),
        Tier.DISK: lower_pages("disk", memory.disk_tokens, memory.page_size, kv_bytes[0], Room(0), kv_bytes[1]),
    }
    return {tier: count for tier, count in pages.items() if count}


def _torch(parts: Parts, knobs: TorchBackend, folder: Path | None) -> Backend:
    spin_briefly()
    from .execution.models import load_model  # torch and transformers are loaded for real runs only
    from .execution.shapes import DTYPE_BYTES
    from .execution.torch_executor import TorchExecutor

    memory = parts.memory
    model = load_model(parts.model_knobs, knobs.device, parts.seed)
    whole = replace(model.shape, dtype_bytes=DTYPE_BYTES[knobs.dtype] if knobs.dtype else model.shape.dtype_bytes)
    sharing = find_sharing(parts.policies.compression, model)
    kv_bytes = (whole.kv_bytes_per_token, shared_shape(whole, sharing).kv_bytes_per_token)
    free = free_bytes(knobs.device)
    num_pages = device_pages(memory.device_tokens, memory.page_size, kv_bytes[0], free, kv_bytes[1])
    page_bytes = memory.page_size * kv_bytes[1]
    lower = _lower(parts, kv_bytes, host_room(knobs.device, num_pages * page_bytes))
    _bind(parts, whole, model)
    executor = TorchExecutor(
        *(model, num_pages, memory.page_size),
        device=knobs.device,
        dtype=knobs.dtype,
        threads=knobs.threads,
        decoupled=knobs.decoupled,
        truncation=parts.lossy.truncation,
        selection=parts.lossy.selection,
        compression=parts.lossy.compression,
        sharing=sharing,
    )
    clock = WallClock() if knobs.clock == "wall" else SkipIdleClock()
    links, disk = _torch_links(parts, executor, model, clock, lower, folder, sharing)
    executor.warm_up()
    _measure_costs(executor, lower, disk)
    pages = {Tier.DEVICE: num_pages, **lower}
    longest = executor.shape.max_positions
    return Backend(
        *(executor, clock, executor.shape, pages, page_bytes, links, disk, longest, model.tokenizer),
        sharing=sharing if parts.policies.compression.shares else None,
    )


def _torch_links(
    parts: Parts,
    executor: TorchExecutor,
    model: LoadedModel,
    clock: Clock,
    lower: Mapping[Tier, int],
    folder: Path | None,
    sharing: Mapping[int, int],
) -> tuple[Links | None, DiskPages | None]:
    """The lower tiers' memory and files, and the threads that copy between them."""
    if not lower:
        return None, None
    from .execution.host_pool import host_pool
    from .execution.torch_links import TorchLinks

    host = host_pool(executor.pool, lower[Tier.HOST]) if Tier.HOST in lower else None
    disk = _open_disk(parts, executor, model, lower[Tier.DISK], folder, sharing) if Tier.DISK in lower else None
    try:
        return TorchLinks(executor.pool, host, disk, clock), disk
    except BaseException:
        if disk is not None:
            disk.close()
        raise


def _measure_costs(executor: TorchExecutor, lower: Mapping[Tier, int], disk: DiskPages | None) -> None:
    """Ask for the costs that policies of a hierarchy ask for, so that measuring them takes no time of the run."""
    if disk is not None:
        executor.costs.disk_bytes_per_s = partial(_read_bytes_per_s, disk)
    for tier in lower:
        executor.costs.recompute_s(0, 1)
        executor.costs.load_s(1, tier)


def _read_bytes_per_s(disk: DiskPages) -> float:
    try:
        return disk.measure()[0]
    except ValueError:  # no room beside the tier: loads from it count as too slow to plan with
        return 0.0


def _open_disk(
    parts: Parts,
    executor: TorchExecutor,
    model: LoadedModel,
    num_pages: int,
    folder: Path | None,
    sharing: Mapping[int, int],
) -> DiskPages:
    from .execution.disk import DiskPages
    from .execution.fingerprint import page_format

    memory, shape = parts.memory, executor.shape
    if memory.disk_dir is None and folder is None:
        raise ValueError("memory.disk_tokens is more than 0: memory.disk_dir must be given, there is no run folder")
    where = Path(memory.disk_dir).expanduser() if memory.disk_dir else Path(folder or ".") / "disk"
    dtype = str(executor.pool.dtype).removeprefix("torch.")
    decoupled = isinstance(parts.backend, TorchBackend) and parts.backend.decoupled
    text = page_format(model.module, shape, memory.page_size, dtype, rotated=not decoupled, sharing=sharing)
    page_bytes = memory.page_size * shape.kv_bytes_per_token
    return DiskPages.open(where, num_pages, page_bytes, text, persist=memory.disk_persist)
