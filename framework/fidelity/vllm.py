"""The simulator against a measured run of vLLM: the same requests, that GPU's measured operator times.

Nothing is fitted to the run but one constant time per iteration, such that the mean latency of its first
:data:`FITTED` requests is met; the errors are over all of them. What is modelled beyond the tables follows vLLM's
documented design: prompts are chunked to a token budget that running requests are served from first, prefixes are
shared by whole blocks of 16 tokens, and small batches run in CUDA graphs that were captured for some sizes only, so
that a batch takes the time of the next captured size. Not modelled: vLLM schedules an iteration while the one before
runs, so that a prompt that arrives waits for up to one iteration more than here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import Backend
from ..composition import prepare
from ..execution.capacity import device_pages
from ..execution.clocks import VirtualClock
from ..execution.contract import ModelShape
from ..execution.hardware import Hardware
from ..execution.shapes import model_shape
from ..execution.simulated import SimulatedExecutor
from ..execution.tables import Curve, OperatorTables, load_tables
from ..metrics import RunRecorder
from ..policy import FAMILIES, Tier
from ..run_info import RunInfo
from ..schema import ConfigError, build
from ..serve import Server
from .vllm_bench import Bench, Floats, Latencies, Requests, read_bench, read_workload

FITTED = 30  # requests whose mean latency sets the constant
MEAN_GOAL, PERCENTILE_GOAL = 0.02, 0.035
STATISTICS: Mapping[str, float | None] = {"mean": None, "p50": 50.0, "p90": 90.0, "p99": 99.0}
_BLOCK = 16
_ROUNDS = 8
_SYSTEM = {"eviction": "lru", "writeback": "none", "prefetch": "prefix", "truncation": "none", "compression": "none"}
_SYSTEM |= {"scheduling": "chunked", "routing": "single"}


@dataclass(frozen=True, slots=True)
class VllmRow:
    """One figure: ``metric`` (ttft, tpot, latency) and ``statistic`` (mean, p50, ...), seconds; ``goal``: the largest
    relative error that is good enough."""

    metric: str
    statistic: str
    real_s: float
    simulated_s: float
    goal: float

    @property
    def error(self) -> float:
        """Simulated over real, less 1."""
        return self.simulated_s / self.real_s - 1.0

    @property
    def reached(self) -> bool:
        """The error is within the goal."""
        return abs(self.error) <= self.goal


@dataclass(frozen=True, slots=True)
class VllmFidelity:
    """The comparison. ``overhead_s``: the fitted constant per iteration. ``times_from``: see
    :class:`~..execution.cost_tables.Shares`."""

    rows: tuple[VllmRow, ...]
    overhead_s: float
    requests: int
    about: str
    times_from: Mapping[str, Any]
    real: Latencies
    simulated: Latencies

    def row(self, metric: str, statistic: str) -> VllmRow:
        """One of :attr:`rows`."""
        return next(row for row in self.rows if (row.metric, row.statistic) == (metric, statistic))


@dataclass(frozen=True, slots=True)
class _Setup:
    """What every run of the comparison shares."""

    shape: ModelShape
    hardware: Hardware
    tables: OperatorTables
    bench: Bench
    workload: Requests

    def run(self, overhead_s: float) -> tuple[Latencies, Mapping[str, Any]]:
        """One simulation with ``overhead_s`` per iteration."""
        tables = replace(self.tables, iteration_s=overhead_s, sequence_s=0.0)
        executor = SimulatedExecutor(self.shape, self.hardware, _BLOCK, tables=tables)
        kv_bytes = self.shape.kv_bytes_per_token
        pages = device_pages(None, _BLOCK, kv_bytes, self.hardware.free_bytes(self.shape.weight_bytes))
        backend = Backend(executor, VirtualClock(), self.shape, {Tier.DEVICE: pages}, _BLOCK * kv_bytes)
        recorder = RunRecorder(Path())  # keeps the rows; never closed, nothing is written
        Server(prepare(_config(self), RunInfo("vllm")), backend, self.workload).run(recorder, lambda progress: None)
        rows = np.sort(recorder.requests.rows(), order="conversation")
        arrival_s, first_s, last_s = (rows[name] for name in ("arrival_s", "first_token_s", "completion_s"))
        tpot_s = (last_s - first_s) / np.maximum(rows["output_tokens"] - 1, 1)
        return Latencies(first_s - arrival_s, tpot_s, last_s - arrival_s), executor.times_from() or {}


def compare_vllm(bench: Path, workload: Path, tables: Path, folder: Path | None = None) -> VllmFidelity:
    """Simulate the run in ``bench`` with the operator times in ``tables`` and compare every request's times.

    Parameters
    ----------
    bench: holds ``vllm/requests.jsonl`` and ``vllm/meta.json``. workload: its JSON lines.
    tables: a folder that :func:`~..execution.tables.load_tables` knows, of the run's model and GPU.
    folder: gets ``vllm.md``, ``vllm.csv`` and ``figures/vllm.png``; None: nothing is written.

    Raises
    ------
    ConfigError
        If a file is missing or bad, or model, GPU and tables do not belong together.
    """
    setup = _setup(bench, workload, tables)
    overhead_s = _fit(setup)
    simulated, times_from = setup.run(overhead_s)
    real = setup.bench.real
    about = (
        f"vLLM {setup.bench.version}, {setup.shape.name} on {setup.hardware.name}, {len(real.ttft_s)} requests;"
        f" {setup.tables.source}"
    )
    found = VllmFidelity(
        *(tuple(_rows(real, simulated)), overhead_s, len(real.ttft_s), about, times_from, real, simulated)
    )
    if folder is not None:
        from .vllm_report import write_vllm

        write_vllm(found, folder)
    return found


def find_vllm(root: Path) -> tuple[Path, Path, Path]:
    """The measured run of Llama-3.1-8B on the RTX PRO 6000 in a copy of LLMServingSim's data: bench, workload, tables.

    Raises
    ------
    ConfigError
        If one of them is missing.
    """
    bench = root / "bench" / "examples" / "RTXPRO6000" / "Llama-3.1-8B"
    name = "sharegpt-llama-3.1-8b-300-sps10.jsonl"
    workloads = [root / "workloads" / name, root / "workloads" / f"{name}.zst"]
    tables = root / "profiler" / "perf" / "RTXPRO6000" / "meta-llama" / "Llama-3.1-8B" / "bf16" / "tp1"
    workload = next((path for path in workloads if path.is_file()), workloads[0])
    for path in (bench, workload, tables):
        if not path.exists():
            raise ConfigError(f"task.vllm: {path} is missing; {root} must hold LLMServingSim's data")
    return bench, workload, tables


def _setup(bench: Path, workload: Path, tables: Path) -> _Setup:
    found = read_bench(bench)
    shape = model_shape(_option("model", found.model.split("/")[-1].lower()))
    hardware = build(Hardware, _option("hardware", _gpu(tables)), "hardware")
    if hardware.devices != found.devices:
        raise ConfigError(f"{bench}: the run used {found.devices} devices, hardware {hardware.name!r} has one")
    times = _captured(load_tables(tables, shape, hardware), found.max_num_seqs)
    return _Setup(shape, hardware, times, found, read_workload(workload, found))


def _captured(tables: OperatorTables, max_num_seqs: int) -> OperatorTables:
    """Batches of few tokens padded to the next size for which vLLM captures a CUDA graph: 1, 2, 4, multiples of 8 up to
    twice the most sequences, at most 512 (``CompilationConfig.cudagraph_capture_sizes``)."""
    largest = min(2 * max_num_seqs, 512)

    def padded(curve: Curve | None) -> Curve | None:
        if curve is None:
            return None
        sizes = np.arange(1, largest + 1)
        captured = np.where(sizes <= 2, sizes, np.where(sizes <= 4, 4, -(-sizes // 8) * 8))
        beyond = curve.x > largest
        seconds = np.array([curve.at(float(size)) for size in captured])
        return Curve(np.append(sizes, curve.x[beyond]), np.append(seconds, curve.seconds[beyond]))

    return replace(tables, dense=padded(tables.dense), head=padded(tables.head))


def _gpu(tables: Path) -> str:
    """The hardware file of the GPU that the folders of the tables name."""
    known = {path.name.removesuffix(".yaml") for path in files("kvarena.conf").joinpath("hardware").iterdir()}
    named = [part.lower() for part in tables.parts if part.lower() in known]
    if not named:
        raise ConfigError(f"{tables}: no folder is named after a known GPU ({', '.join(sorted(known))})")
    return named[-1]


def _option(group: str, name: str) -> dict[str, Any]:
    """A shipped option of the configuration, as it stands."""
    import yaml

    path = files("kvarena.conf").joinpath(group, f"{name}.yaml")
    if not path.is_file():
        raise ConfigError(f"there is no {group}={name}: the run is of a model or GPU that is not known")
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def _config(setup: _Setup) -> dict[str, Any]:
    """The system vllm with the run's arguments."""
    config: dict[str, Any] = {family: _option(family, _SYSTEM[family]) for family in FAMILIES}
    bench = setup.bench
    config["scheduling"] |= {"max_batched_tokens": bench.max_num_batched_tokens, "max_running": bench.max_num_seqs}
    others = {"memory": "default", "backend": "simulated", "tracking": "none", "task": "serve"}
    config |= {group: _option(group, name) for group, name in others.items()}
    config |= {"workload": _option("workload", "synthetic_chat"), "hardware": _option("hardware", setup.hardware.name)}
    return config | {"model": _option("model", setup.shape.name), "seed": 0}


def _fit(setup: _Setup) -> float:
    """The constant per iteration with which the first requests take as long as they did, by secants from 0."""
    target_s = float(setup.bench.real.latency_s[:FITTED].mean())

    def excess_s(overhead_s: float) -> float:
        return float(setup.run(overhead_s)[0].latency_s[:FITTED].mean()) - target_s

    before_s, now_s = 0.0, 1e-3
    before, now = excess_s(before_s), excess_s(now_s)
    for _ in range(_ROUNDS):
        if abs(now) < 1e-4 * target_s or now == before:
            break
        next_s = max(0.0, now_s - now * (now_s - before_s) / (now - before))
        before_s, before, now_s = now_s, now, next_s
        now = excess_s(now_s)
    return now_s


def _rows(real: Latencies, simulated: Latencies) -> list[VllmRow]:
    rows = []
    for metric in ("ttft", "tpot", "latency"):
        a, b = getattr(real, f"{metric}_s"), getattr(simulated, f"{metric}_s")
        for name, percentile in STATISTICS.items():
            goal = MEAN_GOAL if percentile is None else PERCENTILE_GOAL
            rows.append(VllmRow(metric, name, _statistic(a, percentile), _statistic(b, percentile), goal))
    return rows


def _statistic(values: Floats, percentile: float | None) -> float:
    return float(values.mean() if percentile is None else np.percentile(values, percentile))
