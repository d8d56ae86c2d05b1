"""What was measured as a hardware file: rates of the roofline that the tables fall back on, links and sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..execution.contract import ModelShape
from ..execution.hardware import Hardware
from ..execution.tables import Curve, Grid, OperatorTables
from ..metrics.files import replace_text
from .steps import midmean

if TYPE_CHECKING:
    from torch import Tensor

COPY_BYTES = 128 * 2**20


def measured_hardware(base: Hardware, name: str, tables: OperatorTables, memory_bytes_per_s: float) -> Hardware:
    """``base`` under ``name`` with what ``tables`` and a copy in the device's memory say of this machine.

    FLOP/s and bytes/s are those that were reached, so that the efficiencies are 1; attention's are relative to them.
    """
    shape, dense = tables.shape, tables.dense
    assert dense is not None
    gemm_s = max(dense.slope - _elementwise_s(shape, memory_bytes_per_s), dense.slope / 5, 1e-15)
    flops_per_s = 2.0 * _layer_params(shape) / gemm_s
    weights_s = _layer_params(shape) * shape.dtype_bytes / memory_bytes_per_s
    layer_s = max(0.0, float(dense.seconds[0]) - weights_s) / shape.num_layers
    links = {name: value for name, value in asdict(tables.links).items() if value is not None}
    found = {
        "memory_bytes_per_s": memory_bytes_per_s,
        "flops_per_s_32bit" if shape.dtype_bytes >= 4 else "flops_per_s_16bit": flops_per_s,
        "gemm_efficiency": 1.0,
        "gemm_bandwidth_efficiency": 1.0,
        "attention_efficiency": _attention_efficiency(tables, flops_per_s, base.attention_efficiency),
        "attention_bandwidth_efficiency": _read_efficiency(
            tables, memory_bytes_per_s, base.attention_bandwidth_efficiency
        ),
        "layer_overhead_s": layer_s,
        "iteration_overhead_s": tables.iteration_s,
        "sequence_overhead_s": tables.sequence_s,
        "host_link_bytes_per_s": links.pop("host_bytes_per_s", None),
        "host_link_latency_s": links.pop("host_latency_s", None),
        **links,
    }
    return replace(base, name=name, devices=1, host_links=1, **{k: v for k, v in found.items() if v is not None})


def _layer_params(shape: ModelShape) -> int:
    return shape.num_params - shape.embedding_params - shape.vocab_size * shape.hidden_size


def _elementwise_s(shape: ModelShape, bytes_per_s: float) -> float:
    """Per token, of all layers: the cost model's twelve passes over hidden states, and writing K/V."""
    width = 12 * shape.hidden_size + 2 * shape.num_kv_heads * shape.head_dim
    return shape.num_layers * width * shape.dtype_bytes / bytes_per_s


def _attention_efficiency(tables: OperatorTables, flops_per_s: float, default: float) -> float:
    """Share of the FLOP/s that the longest prefill over the longest context reaches in attention."""
    shape, slope = tables.shape, _slope(tables.attention.prefill)
    if slope is None:
        return default
    queries, per_key_s = slope
    reached = 4.0 * shape.num_layers * shape.num_heads * shape.head_dim * queries / per_key_s
    return float(np.clip(reached / flops_per_s, 1e-3, 1.0))


def _read_efficiency(tables: OperatorTables, bytes_per_s: float, default: float) -> float:
    """Share of the bandwidth at which the largest decode batch reads its K/V."""
    slope = _slope(tables.attention.decode)
    if slope is None:
        return default
    sequences, per_key_s = slope
    return float(np.clip(tables.shape.kv_bytes_per_token * sequences / per_key_s / bytes_per_s, 1e-3, 1.0))


def _slope(grid: Grid | None) -> tuple[float, float] | None:
    """The largest first coordinate with two points, and the seconds per unit of the second between its last two."""
    for i in reversed(range(len(grid.axes[0]))) if grid is not None else ():
        assert grid is not None
        known = ~np.isnan(grid.seconds[i])
        if known.sum() > 1:
            slope = Curve(grid.axes[1][known], np.maximum.accumulate(grid.seconds[i][known])).slope
            if slope > 0:
                return float(grid.axes[0][i]), slope
    return None


def copy_bytes_per_s(like: Tensor, repeats: int = 7) -> float:
    """Bytes/s of the memory of ``like``, read and written: a copy counts twice."""
    import torch

    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=like.device)
    target, times_s = torch.empty_like(source), list[float]()
    for turn in range(repeats + 1):
        start_s = perf_counter()
        target.copy_(source)
        if like.is_cuda:
            torch.cuda.synchronize(like.device)
        times_s.extend([perf_counter() - start_s] if turn else [])
    return 2 * COPY_BYTES / midmean(times_s)


def memory_sizes(like: Tensor) -> tuple[int, int]:
    """Bytes of the device's memory and of the host's; a CPU's are half of the machine's each."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not like.is_cuda:
        return host // 2, host // 2
    import torch

    return int(torch.cuda.get_device_properties(like.device).total_memory), host


def write_hardware(hardware: Hardware, folder: Path, source: str) -> Path:
    """Write ``hardware/<name>.yaml`` into ``folder``, a folder of configs, and return its path.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    lines = [f"# {source}.", "# Made by task=calibrate. Rates are those that were reached: the efficiencies are 1."]
    lines += [f"{field.name}: {_yaml(getattr(hardware, field.name))}" for field in fields(Hardware)]
    return _write(folder / "hardware" / f"{hardware.name}.yaml", lines)


def write_model(knobs: Mapping[str, Any], folder: Path) -> Path:
    """Write ``model/<name>.yaml`` into ``folder``: a shape preset, which the simulator takes.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    lines = ["# The shape of a model as it was loaded. Made by task=calibrate."]
    return _write(folder / "model" / f"{knobs['name']}.yaml", [*lines, *(f"{k}: {_yaml(v)}" for k, v in knobs.items())])


def _write(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, "\n".join(lines) + "\n")
    return path


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(float(f"{value:.6g}")) if abs(value) < 1e6 else f"{value:.5e}"
    return str(value)
