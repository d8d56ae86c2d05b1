"""vidur's profiles: a folder ``profiling/compute/<gpu>/<model>`` with ``mlp.csv`` (or ``.csv.zst``), and beside
``compute`` the collectives in ``network/<gpu>_*/all_reduce.csv``.

Times are milliseconds of one layer's kernels by ``num_tokens`` and ``num_tensor_parallel_workers``. Attention is not in
these tables; the roofline gives it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...schema import ConfigError
from ..contract import ModelShape
from ..cost import CostModel, mlp_width
from ..hardware import Hardware
from .curves import Curve, Floats
from .operators import OperatorTables
from .reading import Table, positive, read_csv

_KERNELS = {
    "input_layernorm": 1,
    "attn_pre_proj": 1,
    "attn_rope": 1,
    "attn_post_proj": 1,
    "post_attention_layernorm": 1,
    "mlp_up_proj": 1,
    "mlp_act": 1,
    "mlp_down_proj": 1,
    "add": 2,
}
_FIGURES = ("n_head", "n_kv_head", "n_embd", "n_expanded_embd")


def find(path: Path) -> Path | None:
    """The file of the kernels in ``path``, or None."""
    return next((file for file in (path / "mlp.csv", path / "mlp.csv.zst") if file.is_file()), None)


def load(path: Path, shape: ModelShape, hardware: Hardware) -> OperatorTables:
    """The kernels of ``shape`` on ``hardware.devices`` GPUs as times of all layers.

    Raises
    ------
    ConfigError
        If a column is missing, a value impossible, or model or number of GPUs were not measured.
    """
    file = find(path)
    if file is None:
        raise ConfigError(f"backend.tables: {path} has no mlp.csv")
    columns = [f"time_stats.{kernel}.median" for kernel in ("emb", *_KERNELS)]
    table = read_csv(file, (*columns, *_FIGURES, "num_tokens", "num_tensor_parallel_workers"))
    for column in ("num_tokens", *columns):
        positive(table, column)
    _check_model(table, shape)
    rows = table.where("num_tensor_parallel_workers", hardware.devices)
    if not len(rows):
        degrees = ", ".join(str(degree) for degree in table.values("num_tensor_parallel_workers"))
        raise ConfigError(f"{file}: measured on {degrees} devices, hardware {hardware.name!r} has {hardware.devices}")
    layer_ms = sum(times * rows.numbers(f"time_stats.{kernel}.median") for kernel, times in _KERNELS.items())
    total_s = (shape.num_layers * layer_ms + rows.numbers("time_stats.emb.median")) * 1e-3
    curve = Curve.of_points(rows.numbers("num_tokens"), np.asarray(total_s))
    reduce_s, measured = _all_reduce(path, shape, hardware, curve)
    return OperatorTables(
        source=f"vidur's profile of {path.name} on {path.parent.parent.name}",
        shape=shape,
        devices=hardware.devices,
        dense=Curve(curve.x, curve.seconds + reduce_s),
        unmeasured=("attention", "head") + (() if measured else ("all_reduce",)),
    )


def _check_model(table: Table, shape: ModelShape) -> None:
    first = {name: int(table.numbers(name)[0]) for name in _FIGURES}
    wanted = {
        "n_head": shape.num_heads,
        "n_kv_head": shape.num_kv_heads,
        "n_embd": shape.hidden_size,
    }
    for name, value in wanted.items():
        if first[name] != value:
            raise ConfigError(f"{table.path}: was measured with {name}={first[name]}, model {shape.name!r} has {value}")
    if not any(abs(times * first["n_expanded_embd"] / mlp_width(shape) - 1) < 0.01 for times in (2, 3)):
        raise ConfigError(
            f"{table.path}: was measured with an MLP of {first['n_expanded_embd']}, which model {shape.name!r} has not"
        )


def _all_reduce(path: Path, shape: ModelShape, hardware: Hardware, curve: Curve) -> tuple[Floats, bool]:
    """Seconds of all collectives at each point of ``curve``, and whether they were measured."""
    if hardware.devices == 1:
        return np.zeros(len(curve.x)), True
    root, gpu = next((folder.parent for folder in path.parents if folder.name == "compute"), path), _gpu(path)
    files = sorted([*root.glob(f"network/{gpu}_*/all_reduce.csv"), *root.glob(f"network/{gpu}_*/all_reduce.csv.zst")])
    for file in files:
        table = read_csv(file, ("time_stats.all_reduce.median", "num_workers", "size"))
        for column in ("time_stats.all_reduce.median", "size"):
            positive(table, column)
        rows = table.where("num_workers", hardware.devices)
        if len(rows):
            by_bytes = Curve.of_points(rows.numbers("size"), rows.numbers("time_stats.all_reduce.median") * 1e-3)
            sent = curve.x * shape.hidden_size * shape.dtype_bytes
            return 2 * shape.num_layers * np.array([by_bytes.at(float(size)) for size in sent]), True
    model = CostModel(shape, hardware)
    return np.array([model.all_reduce_s(int(tokens)) for tokens in curve.x]), False


def _gpu(path: Path) -> str:
    parts = path.parts
    return parts[parts.index("compute") + 1] if "compute" in parts[:-1] else ""
