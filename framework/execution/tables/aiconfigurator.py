"""NVIDIA aiconfigurator's measured kernels: a folder of one GPU, such as ``h100_sxm``, with Parquet files.

``gemm/vllm/<version>/gemm_perf.parquet`` (gemm_dtype, m, n, k, latency), ``attention/vllm/<version>/`` with
``context_attention_perf.parquet`` (prompts without context) and ``generation_attention_perf.parquet`` (decode;
``isl`` + ``step`` keys), ``comm/vllm/<version>/custom_allreduce_perf.parquet`` (``message_size`` counts numbers, not
bytes: the same sizes take half as long in int8). Latencies are milliseconds. Small kernels are not in these tables; the
roofline gives them.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..contract import ModelShape
from ..cost import CostModel, mlp_width
from ..hardware import Hardware
from .curves import Curve, Floats, Grid
from .lines import Cells
from .operators import AttentionTables, OperatorTables
from .reading import Table, positive, read_parquet, whole

_TYPES = {1: "fp8", 2: "bfloat16"}  # by bytes


def is_system(path: Path) -> bool:
    """``path`` looks like the folder of one GPU."""
    return (
        _newest(path, "gemm", "gemm_perf") is not None
        or _newest(path, "attention", "context_attention_perf") is not None
    )


def load(path: Path, shape: ModelShape, hardware: Hardware) -> OperatorTables:
    """The kernels of ``shape`` on as many of these GPUs as ``hardware`` has, put together to whole iterations.

    Raises
    ------
    ConfigError
        If a file lacks a column or holds impossible values.
    """
    roofline = CostModel(shape, hardware)
    attention = _attention(path, shape, hardware.devices)
    gemms = _gemms(path, shape, hardware)
    missing = [] if gemms is not None else ["gemm"]
    missing += [name for name in ("prefill", "decode") if getattr(attention, name) is None]
    dense = head = None
    if gemms is not None:
        reduce_s = _all_reduce(path, shape, hardware.devices)
        missing += ["elementwise"] + (["all_reduce"] if hardware.devices > 1 and reduce_s is None else [])
        launch_s = min([float(np.nanmin(g.seconds)) for g in (attention.prefill, attention.decode) if g], default=0.0)
        dense, head = _dense(gemms, roofline, reduce_s, launch_s), gemms.head()
    return OperatorTables(
        source=f"aiconfigurator's kernels of vLLM {_versions(path)} on {path.name}",
        shape=shape,
        devices=hardware.devices,
        dense=dense,
        head=head,
        attention=attention,
        unmeasured=tuple(missing),
    )


class _Gemms:
    """Times of the model's weight matrices, from a table over tokens, columns and rows."""

    def __init__(self, table: Table, shape: ModelShape, hardware: Hardware) -> None:
        self._shape, self._hardware = shape, hardware
        columns = [table.numbers(name) for name in ("m", "n", "k")]
        seconds = table.numbers("latency") * 1e-3
        ratios = Grid.of_points(columns, seconds / self._ideal_s(*columns))  # smoother than times
        ratios = ratios.completed(lambda point: np.ones_like(point[0]))
        self.tokens = ratios.axes[0]
        axes = [self.tokens.tolist(), np.log2(ratios.axes[1]).tolist(), np.log2(ratios.axes[2]).tolist()]
        self._cells = Cells(axes, ratios.seconds.ravel().tolist())

    def _ideal_s(self, m: Floats, n: Floats, k: Floats) -> Floats:
        flops_s = 2 * m * n * k / self._hardware.flops_per_s(self._shape.dtype_bytes)
        bytes_s = (n * k + m * (n + k)) * self._shape.dtype_bytes / self._hardware.memory_bytes_per_s
        return np.maximum(flops_s, bytes_s)

    def seconds(self, n: float, k: float) -> Floats:
        """Of one matrix of ``k`` rows and ``n`` columns, at every measured number of tokens."""
        clipped = [self._cells.clip((m, float(np.log2(n)), float(np.log2(k)))) for m in self.tokens]
        ratio = np.array([self._cells.at(*point) for point in clipped])
        return np.asarray(ratio * self._ideal_s(self.tokens, np.array(n), np.array(k)))

    def layer(self) -> Floats:
        """All four matrices of a layer."""
        shape, devices = self._shape, self._hardware.devices
        query = shape.num_heads * shape.head_dim / devices
        kv = max(shape.num_kv_heads / devices, 1) * shape.head_dim
        width = mlp_width(shape) / devices
        up = width * (2 / 3 if mlp_width(shape) % 3 == 0 else 1 / 2)  # gate and up in one, or up alone
        hidden = float(shape.hidden_size)
        sizes = ((query + 2 * kv, hidden), (hidden, query), (up, hidden), (hidden, width - up))
        return np.asarray(sum(self.seconds(n, k) for n, k in sizes))

    def head(self) -> Curve:
        """The LM head over sampled rows."""
        return Curve(
            self.tokens, self.seconds(self._shape.vocab_size / self._hardware.devices, self._shape.hidden_size)
        )


def _gemms(path: Path, shape: ModelShape, hardware: Hardware) -> _Gemms | None:
    file = _newest(path, "gemm", "gemm_perf")
    if file is None:
        return None
    table = read_parquet(file, ("gemm_dtype", "m", "n", "k", "latency"))
    for name in ("m", "n", "k", "latency"):
        positive(table, name)
    table = table.where("gemm_dtype", _TYPES.get(shape.dtype_bytes))
    return _Gemms(table, shape, hardware) if len(table) else None


def _dense(gemms: _Gemms, roofline: CostModel, reduce_s: Curve | None, launch_s: float) -> Curve:
    """Everything in the layers but attention; ``launch_s`` of the small kernels' time is in attention's tables."""
    shape, tokens = roofline.shape, gemms.tokens
    small_s = np.array([max(0.0, roofline.elementwise_s(int(count)) - launch_s) for count in tokens])
    if reduce_s is None:
        sent_s = np.array([roofline.all_reduce_s(int(count)) for count in tokens])
    else:
        sent_s = 2 * shape.num_layers * np.array([reduce_s.at(count * shape.hidden_size) for count in tokens])
    return Curve(tokens, shape.num_layers * gemms.layer() + small_s + sent_s)


def _all_reduce(path: Path, shape: ModelShape, devices: int) -> Curve | None:
    """Seconds by numbers sent."""
    file = _newest(path, "comm", "custom_allreduce_perf")
    if file is None or devices == 1:
        return None
    table = read_parquet(file, ("num_gpus", "message_size", "latency", "backend"))
    for name in ("message_size", "latency"):
        positive(table, name)
    table = table.where("num_gpus", devices)
    table = table.keep(np.array([name.endswith("graph") for name in table.texts("backend")], dtype=bool))
    return Curve.of_points(table.numbers("message_size"), table.numbers("latency") * 1e-3) if len(table) else None


def _attention(path: Path, shape: ModelShape, devices: int) -> AttentionTables:
    prompts, decodes = (
        _attention_rows(path, f"{name}_attention_perf", shape, devices) for name in ("context", "generation")
    )
    prefill = decode = prefills = None
    if prompts is not None:
        alone = prompts.where("batch_size", 1)
        prefill = _grid(alone, [alone.numbers("isl"), np.zeros(len(alone))], shape) if len(alone) else None
        prefills = _grid(prompts, [prompts.numbers("batch_size"), prompts.numbers("isl")], shape)
    if decodes is not None:
        keys = decodes.numbers("isl") + decodes.numbers("step")
        decode = _grid(decodes, [decodes.numbers("batch_size"), keys], shape)
    return AttentionTables(prefill=prefill, decode=decode, prefills=prefills)


def _grid(table: Table, columns: list[Floats], shape: ModelShape) -> Grid:
    return Grid.of_points(columns, table.numbers("latency") * 1e-3 * shape.num_layers)


def _attention_rows(path: Path, name: str, shape: ModelShape, devices: int) -> Table | None:
    """The rows of this model's heads on one of ``devices`` GPUs; None if there are none."""
    file = _newest(path, "attention", name)
    if file is None:
        return None
    sizes = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim")
    table = read_parquet(file, (*sizes, "attn_dtype", "kv_cache_dtype", "latency"), optional=("window_size",))
    for column in sizes:
        whole(table, column)
    positive(table, "latency")
    wanted = {
        "num_heads": shape.num_heads // devices,
        "num_key_value_heads": max(shape.num_kv_heads // devices, 1),
        "head_dim": shape.head_dim,
        "attn_dtype": _TYPES.get(shape.dtype_bytes),
        "kv_cache_dtype": _TYPES.get(shape.kv_dtype_bytes),
    }
    for column, value in (wanted | ({"window_size": 0} if "window_size" in table.columns else {})).items():
        table = table.where(column, value)
    return table if len(table) else None


def _newest(path: Path, kind: str, name: str) -> Path | None:
    """The file of the latest vLLM version that has one."""
    found = list(path.glob(f"{kind}/vllm/*/{name}.parquet"))
    return max(found, key=lambda file: [int(part) for part in re.findall(r"\d+", file.parent.name)], default=None)


def _versions(path: Path) -> str:
    files = [_newest(path, "gemm", "gemm_perf"), _newest(path, "attention", "context_attention_perf")]
    return ", ".join(dict.fromkeys(file.parent.name for file in files if file is not None))
