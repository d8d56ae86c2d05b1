"""From a resolved config to the parts of a run. What is bad is found here, before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .choices import Lossy, check_choices, check_task, lossy
from .execution.contract import ModelShape
from .execution.hardware import Hardware
from .execution.model_knobs import HfModel, ModelKnobs, model_knobs
from .execution.shapes import model_shape
from .execution.simulated import SimulatedBackend
from .metrics import Prices
from .metrics.tracking import NoneKnobs, WandbKnobs
from .policy import (
    FAMILIES,
    Compression,
    Eviction,
    Policy,
    Prefetch,
    Routing,
    Scheduling,
    Tier,
    Truncation,
    Writeback,
)
from .registry import Registry
from .run_info import RunInfo
from .schema import ConfigError, build, suggest
from .sharing import check_layers
from .task_knobs import TASK_KNOBS, ReplayTask, TaskKnobs
from .workloads.build import workload_schema
from .workloads.common import FileKnobs, Knobs

TOP_LEVEL = (
    *(
        "seed",
        "save_tokens",
        "save_decisions",
        "runs",
        "resume",
        "system",
        "memory",
        "backend",
        "model",
        "hardware",
        "workload",
        "tracking",
        "task",
    ),
    *FAMILIES,
)
TRACKERS: Mapping[str, type[NoneKnobs | WandbKnobs]] = {"none": NoneKnobs, "wandb": WandbKnobs}
TIERS = (Tier.DEVICE, Tier.HOST, Tier.DISK)
CONTRACTS: Mapping[str, type[Policy]] = {
    "eviction": Eviction,
    "writeback": Writeback,
    "prefetch": Prefetch,
    "truncation": Truncation,
    "compression": Compression,
    "scheduling": Scheduling,
    "routing": Routing,
}


@dataclass(frozen=True, slots=True)
class TorchBackend:
    """``backend=torch``.

    Attributes
    ----------
    device: ``cpu``, ``cuda`` or ``cuda:N``. dtype: of weights and K/V; None: the model's.
    threads: of a CPU; None: torch's choice.
    clock: ``skip_idle`` jumps over times in which nothing runs; ``wall`` sleeps through them.
    decoupled: cache keys without positions.
    """

    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    threads: int | None = None
    clock: Literal["skip_idle", "wall"] = "skip_idle"
    decoupled: bool = False


BACKENDS: Mapping[str, type[TorchBackend | SimulatedBackend]] = {
    "torch": TorchBackend,
    "simulated": SimulatedBackend,
}


@dataclass(frozen=True, slots=True)
class Memory:
    """``memory.*``: sizes in tokens of the model's native K/V; None: what the hardware holds, 0: no such tier.

    Attributes
    ----------
    host_tokens: None: what the hardware's host memory holds; on a real machine a quarter of its free memory.
    disk_tokens: a number; no hardware tells how much of its disk is for K/V.
    disk_dir: where the disk tier keeps its files; None: in the run's folder. Only a real disk has files.
    disk_persist: the files stay, and a later run of the same model finds what they hold; else they go with the run.
    """

    page_size: int = 16
    device_tokens: int | None = None
    host_tokens: int | None = None
    disk_tokens: int | None = 0
    disk_dir: str | None = None
    disk_persist: bool = False

    def __post_init__(self) -> None:
        if self.page_size < 1:
            raise ValueError(f"page_size is {self.page_size}, expected at least 1")
        if self.device_tokens is not None and self.device_tokens < self.page_size:
            raise ValueError(f"device_tokens is {self.device_tokens}, expected at least page_size = {self.page_size}")
        for name in ("host_tokens", "disk_tokens"):
            tokens = getattr(self, name)
            if tokens is not None and tokens != 0 and tokens < self.page_size:
                raise ValueError(
                    f"{name} is {tokens}, expected 0 (no such tier) or at least page_size = {self.page_size}"
                )
        if self.disk_tokens is None:
            raise ValueError("disk_tokens is null, expected a number of tokens: no hardware tells the size of its disk")
        if self.disk_persist and self.disk_dir is None:
            raise ValueError("disk_persist is true, but disk_dir is null: the run's folder is no place to stay in")
        if self.disk_dir is not None and not self.disk_dir:
            raise ValueError("disk_dir is '', expected a folder, or null for the run's own")


@dataclass(frozen=True, slots=True)
class Policies:
    """One policy per family."""

    eviction: Eviction
    writeback: Writeback
    prefetch: Prefetch
    truncation: Truncation
    compression: Compression
    scheduling: Scheduling
    routing: Routing

    def __post_init__(self) -> None:
        for family, contract in CONTRACTS.items():
            if not isinstance(policy := getattr(self, family), contract):
                kind = type(policy)
                raise ConfigError(f"{family}={kind.name}: {kind.__module__}.{kind.__name__} is no {contract.__name__}")

    def by_family(self) -> dict[str, Policy]:
        """The policies by the name of their family."""
        return {family: getattr(self, family) for family in CONTRACTS}


@dataclass(frozen=True, slots=True)
class Parts:
    """What a config says, checked; nothing is loaded or computed yet.

    ``shape`` is known on the simulated backend, ``model`` is given on the torch backend. ``evictions``: one instance of
    the chosen policy for each tier that there may be.
    """

    seed: int
    save_tokens: bool
    save_decisions: bool
    memory: Memory
    task: TaskKnobs
    workload: Knobs
    backend: TorchBackend | SimulatedBackend
    hardware: Hardware
    shape: ModelShape | None
    model: ModelKnobs | None
    model_knobs: Mapping[str, Any]
    policies: Policies
    evictions: Mapping[Tier, Eviction]
    provenance: Mapping[str, Mapping[str, str]]

    @property
    def tiered(self) -> bool:
        """Something can go to the tiers below the device; without a write-back they would stay empty."""
        return self.policies.writeback.name != "none"

    @property
    def lossy(self) -> Lossy:
        """What changes the cache within a context."""
        return lossy(self.policies.truncation, self.policies.compression)

    @property
    def simulated(self) -> bool:
        """Nothing is computed by a model."""
        return isinstance(self.backend, SimulatedBackend)

    @property
    def symbolic(self) -> bool:
        """No token is computed: sizes and identity are enough."""
        return self.simulated or isinstance(self.task, ReplayTask)

    @property
    def workload_key(self) -> str:
        """Equal for configs whose workloads and sizes are equal."""
        return repr((self.workload, self.seed, self.symbolic, self.task, self.memory, self.model, self.shape))

    @property
    def prices(self) -> Prices:
        """Those of the hardware, per hour; its GB are 10^9 bytes."""
        device, gib = self.hardware.device_usd_per_hour, 2**30 / 1e9
        dram, ssd = self.hardware.dram_usd_per_gb_hour, self.hardware.ssd_usd_per_gb_hour
        return Prices(
            None if device is None else device * self.hardware.devices,
            None if dram is None else dram * gib,
            None if ssd is None else ssd * gib,
        )


@contextmanager
def refusing(where: str = "") -> Iterator[None]:
    """Within it, a bad value or a file that cannot be read is a bad configuration."""
    try:
        yield
    except ConfigError:
        raise
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise ConfigError(f"{where}{name}{error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}{' '.join(str(error).split())}") from error


def prepare(config: Mapping[str, Any], info: RunInfo) -> Parts:
    """Check ``config`` and build all that costs nothing: no model is loaded, nothing is written.

    Raises
    ------
    ConfigError
        One line: which key, what was found, what was expected.
    """
    with refusing():
        return _prepare(config, info)


def _prepare(config: Mapping[str, Any], info: RunInfo) -> Parts:
    _check_keys(config)
    _check_words(config, info)
    name, knobs = option(config, "backend")
    if name not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}{suggest(name, BACKENDS)}")
    backend = build(BACKENDS[name], knobs, f"backend={name}")
    simulated = isinstance(backend, SimulatedBackend)
    policies, evictions, provenance = _policies(config)
    memory = build(Memory, config.get("memory", {}), "memory")
    task = _task(config)
    check_choices(
        *(policies.truncation, policies.compression),
        backend=name,
        decoupled=backend.decoupled,
        replays=isinstance(task, ReplayTask),
    )
    _check_disk(memory, simulated)
    check_task(task, backend=name)
    _check_tracking(config)
    shape, model = (model_shape(config["model"]), None) if simulated else (None, _model(config))
    check_layers(policies.compression, shape, model)
    return Parts(
        seed=_seed(config),
        save_tokens=_typed(config, "save_tokens", bool, False),
        save_decisions=_typed(config, "save_decisions", bool, False),
        memory=memory,
        task=task,
        workload=_workload(config),
        backend=backend,
        hardware=build(Hardware, config.get("hardware", {}), f"hardware={info.choices.get('hardware', '?')}"),
        shape=shape,
        model_knobs=config["model"],
        model=model,
        policies=policies,
        evictions=evictions,
        provenance=provenance,
    )


def option(config: Mapping[str, Any], group: str) -> tuple[str, dict[str, Any]]:
    """The ``name`` of the option that ``group`` picks, and its other keys."""
    knobs = dict(config.get(group) or {})
    name = knobs.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{group}: its YAML must say which one it is (name: ...), found {name!r}")
    return name, knobs


def _model(config: Mapping[str, Any]) -> ModelKnobs:
    """The model's knobs; a path that is local must be there, a name on the hub is not looked up."""
    model = model_knobs(config["model"])
    if not isinstance(model, HfModel):
        return model
    if not (path := model.path):
        raise ConfigError("model.path must be given: a local directory, or a name on the hub")
    is_local = path.startswith(("/", ".", "~")) or path.count("/") > 1
    if is_local and not Path(path).expanduser().is_dir():
        raise ConfigError(f"model.path: there is no directory {path!r}")
    return model


def _policies(
    config: Mapping[str, Any],
) -> tuple[Policies, dict[Tier, Eviction], dict[str, Mapping[str, str]]]:
    """The policies, the eviction policy of each tier, and where each policy comes from."""
    registry = Registry.discover()
    chosen = {family: option(config, family) for family in FAMILIES}
    built: dict[str, Any] = {family: registry.build(family, name, knobs) for family, (name, knobs) in chosen.items()}
    policies = Policies(**built)
    evictions = {tier: _eviction(registry, *chosen["eviction"]) for tier in TIERS[1:]}
    origins: dict[str, Mapping[str, str]] = {
        family: registry.provenance(family, name) for family, (name, _) in chosen.items()
    }
    return policies, {Tier.DEVICE: policies.eviction, **evictions}, origins


def _eviction(registry: Registry, name: str, knobs: Mapping[str, Any]) -> Eviction:
    policy = registry.build("eviction", name, knobs)
    assert isinstance(policy, Eviction)
    return policy


def _check_disk(memory: Memory, simulated: bool) -> None:
    """A disk tier that keeps files needs a disk, and a folder that can be written (which is not made yet)."""
    if memory.disk_dir is None or not memory.disk_tokens:
        if memory.disk_persist:
            raise ConfigError("memory: disk_persist is true, but disk_tokens is 0: there is nothing to keep")
        return
    if simulated and memory.disk_persist:
        raise ConfigError("memory: disk_persist is true, but backend=simulated keeps no data")
    folder = Path(memory.disk_dir).expanduser()
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"memory: disk_dir is {memory.disk_dir!r}: {there} is no folder")
    if not simulated and not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"memory: disk_dir is {memory.disk_dir!r}: {there} cannot be written")


def _task(config: Mapping[str, Any]) -> TaskKnobs:
    name, knobs = option(config, "task")
    if name not in TASK_KNOBS:
        raise ConfigError(f"unknown task {name!r}; known: {', '.join(TASK_KNOBS)}{suggest(name, TASK_KNOBS)}")
    return build(TASK_KNOBS[name], knobs, f"task={name}")


def _workload(config: Mapping[str, Any]) -> Knobs:
    name, given = option(config, "workload")
    knobs = build(workload_schema(name), given, f"workload={name}")
    if isinstance(knobs, FileKnobs) and not (knobs.path is None and getattr(knobs, "dataset", None)):
        knobs.file()  # it must be there
    return knobs


def _check_tracking(config: Mapping[str, Any]) -> None:
    name, knobs = option(config, "tracking")
    if name not in TRACKERS:
        raise ConfigError(f"unknown tracking {name!r}; known: {', '.join(TRACKERS)}{suggest(name, TRACKERS)}")
    build(TRACKERS[name], knobs, f"tracking={name}")


def _check_keys(config: Mapping[str, Any]) -> None:
    for key in config:
        if key not in TOP_LEVEL:
            raise ConfigError(f"unknown key {key!r}{suggest(key, TOP_LEVEL)}")
    for group in ("memory", "model", "hardware"):
        if not isinstance(config.get(group), Mapping):
            raise ConfigError(f"{group} is {config.get(group)!r}, expected the keys of an option")


def _seed(config: Mapping[str, Any]) -> int:
    seed: int = _typed(config, "seed", int, 0)
    if seed < 0:
        raise ConfigError(f"seed is {seed}, expected at least 0")
    return seed


def _check_words(config: Mapping[str, Any], info: RunInfo) -> None:
    """What the command line says in a way that would run something else than it names."""
    if not isinstance(runs := config.get("runs", "runs"), str) or not runs:
        raise ConfigError(f"runs is {runs!r}, expected the folder that run folders go to")
    for word in info.overrides:
        key = word.split("=")[0]
        if key.endswith(".name"):
            raise ConfigError(f"{key} says which option a YAML is; choose one with {key.removesuffix('.name')}=...")


def _typed(config: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = config.get(key, default)
    if type(value) is not kind:
        raise ConfigError(f"{key} is {value!r} ({type(value).__name__}), expected {kind.__name__}")
    return value
