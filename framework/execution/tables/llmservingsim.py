"""LLMServingSim's profiles: a folder ``profiler/perf/<gpu>/<model>/<type>/tp<n>`` of CSV files (or ``.csv.zst``).

``dense.csv`` (layer, tokens, time_us) and ``per_sequence.csv`` (layer, sequences, time_us) are times of one layer each;
``attention.csv`` (prefill_chunk, kv_prefill, n_decode, kv_decode, time_us) of one layer's attention over one prompt
chunk and equal decoding sequences; ``skew.csv`` compares uneven batches with even ones of the same sum.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ...schema import ConfigError
from ..contract import ModelShape
from .curves import Curve, Floats, Grid
from .operators import AttentionTables, OperatorTables, Uneven
from .reading import Table, finite, positive, read_csv, whole

_PER_LAYER = {
    "qkv_proj": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
    "layernorm": 2,
}
_ONCE = ("embedding", "final_layernorm")
_HEAD = ("lm_head", "sampler")
_SHARES = np.array([0.015, 0.0625, 0.125, 0.25, 0.5, 0.75, 0.9])
_ITERATIONS = 3  # skew.csv sums as many measurements


def find(path: Path, devices: int) -> Path | None:
    """The folder of ``devices`` GPUs' tables under ``path``, or None if these are not LLMServingSim's."""
    for folder in (path, path / f"tp{devices}"):
        if _file(folder, "dense") is not None:
            return folder
    return None


def load(folder: Path, shape: ModelShape, devices: int) -> OperatorTables:
    """The tables in ``folder``, of one layer, as times of all layers of ``shape``.

    Raises
    ------
    ConfigError
        If a file lacks a column or a layer, holds impossible values, or is of another model or number of GPUs.
    """
    meta = _meta(folder)
    _check_model(folder, meta, shape, devices)
    gpu, version = meta.get("gpu", folder.parts[-4] if len(folder.parts) > 3 else "?"), meta.get("vllm_version", "?")
    attention = _read(folder, "attention", ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"))
    return OperatorTables(
        source=f"LLMServingSim's profile of vLLM {version} on {gpu} ({meta.get('profiled_at', 'no date')})",
        shape=shape,
        devices=devices,
        dense=_dense(_read(folder, "dense", ("layer", "tokens", "time_us")), shape.num_layers),
        head=_head(_read(folder, "per_sequence", ("layer", "sequences", "time_us"))),
        attention=_attention(attention, _skew(folder), shape.num_layers),
        unmeasured=() if devices == 1 else ("all_reduce",),
    )


def _file(folder: Path, name: str) -> Path | None:
    for path in (folder / f"{name}.csv", folder / f"{name}.csv.zst"):
        if path.is_file():
            return path
    return None


def _read(folder: Path, name: str, columns: tuple[str, ...]) -> Table:
    path = _file(folder, name)
    if path is None:
        raise ConfigError(f"backend.tables: {folder} has no {name}.csv")
    table = read_csv(path, columns)
    for column in columns:
        if column == "time_us":
            positive(table, column)
        elif column != "layer":
            whole(table, column)
    return table


def _meta(folder: Path) -> dict[str, Any]:
    import yaml

    for path in (folder / "meta.yaml", folder.parent / "meta.yaml"):
        if path.is_file():
            try:
                found = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from error
            return found if isinstance(found, dict) else {}
    return {}


def _check_model(folder: Path, meta: dict[str, Any], shape: ModelShape, devices: int) -> None:
    """Compare what the profile tells of its model: the type in its folder's name, and the shard that it ran."""
    degree = re.fullmatch(r"tp(\d+)", folder.name)
    if degree and int(degree[1]) != devices:
        raise ConfigError(f"backend.tables: {folder} was measured on {degree[1]} devices, but there are {devices}")
    variant = str(meta.get("variant", folder.parent.name))
    if shape.dtype_bytes != 2 and variant in ("bf16", "fp16"):
        raise ConfigError(
            f"backend.tables: {folder} measured {variant}, but {shape.name!r} has {shape.dtype_bytes}-byte weights"
        )
    shard = (meta.get("engine_effective") or {}).get("hf_overrides") or {}
    parts = max(meta.get("tp_degrees") or [1])
    known = {
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "vocab_size": shape.vocab_size,
    }
    for name, wanted in known.items():
        if name in shard and int(shard[name]) * parts != wanted:
            raise ConfigError(
                f"backend.tables: {folder} measured {meta.get('model')!r} with {name}={int(shard[name]) * parts},"
                f" but model {shape.name!r} has {wanted}"
            )
    if not shard and "model" in meta and str(meta["model"]).split("/")[-1].lower() != shape.name.lower():
        raise ConfigError(f"backend.tables: {folder} measured {meta['model']!r}, but the model is {shape.name!r}")


def _layer(table: Table, layer: str, axis: str) -> Curve:
    rows = table.where("layer", layer)
    if not len(rows):
        found = ", ".join(sorted(set(table.texts("layer"))))
        raise ConfigError(f"{table.path}: layer {layer!r} is missing; it has {found}")
    return Curve.of_points(rows.numbers(axis), rows.numbers("time_us") * 1e-6)


def _sum(table: Table, weights: dict[str, int], axis: str) -> Curve:
    """The weighted sum of layers, at every point of any of them."""
    curves = {layer: _layer(table, layer, axis) for layer in weights}
    x = np.unique(np.concatenate([curve.x for curve in curves.values()]))
    seconds = sum(weights[layer] * np.interp(x, curve.x, curve.seconds) for layer, curve in curves.items())
    return Curve(x, np.asarray(seconds))


def _dense(table: Table, layers: int) -> Curve:
    extra = set(table.texts("layer")) - {*_PER_LAYER, *_ONCE}
    weights = {layer: times * layers for layer, times in _PER_LAYER.items()}
    return _sum(table, weights | dict.fromkeys(sorted(extra), layers) | dict.fromkeys(_ONCE, 1), "tokens").stepped()


def _head(table: Table) -> Curve:
    return _sum(table, dict.fromkeys(_HEAD, 1), "sequences")


def _attention(table: Table, skew: Table | None, layers: int) -> AttentionTables:
    chunk, sequences = table.numbers("prefill_chunk"), table.numbers("n_decode")
    alone, prompts = table.keep(chunk == 0), table.keep(sequences == 0)
    both = table.keep((chunk > 0) & (sequences > 0))
    return AttentionTables(
        prefill=_grid(prompts, ("prefill_chunk", "kv_prefill"), layers),
        decode=_grid(alone, ("n_decode", "kv_decode"), layers),
        mixed=_grid(both, ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode"), layers),
        uneven_decode=None if skew is None else _uneven_decode(skew, layers),
        uneven_mixed=None if skew is None else _uneven_mixed(skew, layers),
    )


def _grid(table: Table, axes: tuple[str, ...], layers: int) -> Grid | None:
    """``kv_decode`` counts the tokens before the query, which sees itself too."""
    if not len(table):
        return None
    columns = [table.numbers(axis) + (axis == "kv_decode") for axis in axes]
    return Grid.of_points(columns, table.numbers("time_us") * 1e-6 * layers)


def _skew(folder: Path) -> Table | None:
    path = _file(folder, "skew")
    if path is None:
        return None
    table = read_csv(path, ("n", "pc", "kvs", "kv_big", "kv_mean", "t_mean_us", "t_skew_us"))
    for column in ("n", "pc", "kvs", "kv_big", "kv_mean"):
        whole(table, column)
    for column in ("t_mean_us", "t_skew_us"):
        positive(table, column)
    finite(table, "kv_mean")
    return table.keep(table.numbers("kv_big") > table.numbers("kv_mean"))


def _excess(table: Table, layers: int) -> tuple[Floats, Floats]:
    """Per row: seconds per token by which the longest exceeds the mean, and the share of the mean."""
    longest, mean, shortest = table.numbers("kv_big"), table.numbers("kv_mean"), table.numbers("kvs")
    more_us = (table.numbers("t_skew_us") - table.numbers("t_mean_us")) / _ITERATIONS
    return more_us * 1e-6 * layers / (longest - mean), (mean - shortest) / (longest - shortest)


def _uneven_decode(skew: Table, layers: int) -> Uneven | None:
    rows = skew.keep(skew.numbers("pc") == 0)
    if not len(rows):
        return None
    token_s, share = _excess(rows, layers)
    return _medians([rows.numbers("n"), _nearest(_SHARES, share)], token_s)


def _uneven_mixed(skew: Table, layers: int) -> Uneven | None:
    rows = skew.keep(skew.numbers("pc") > 0)
    if not len(rows):
        return None
    token_s, share = _excess(rows, layers)
    keys: Floats = np.asarray(2.0 ** np.round(np.log2(rows.numbers("kv_mean"))), dtype=np.float64)
    return _medians([rows.numbers("pc"), rows.numbers("n"), _nearest(_SHARES, share), keys], token_s)


def _nearest(axis: Floats, values: Floats) -> Floats:
    return np.asarray(axis[np.abs(axis[None, :] - values[:, None]).argmin(axis=1)])


def _medians(columns: list[Floats], values: Floats) -> Uneven:
    """The median of the values in each cell of the grid of all columns; an empty cell takes that of the nearest one."""
    axes = tuple(np.unique(column) for column in columns)
    cells = np.full([len(axis) for axis in axes], np.nan)
    index = np.stack([np.searchsorted(axis, column) for axis, column in zip(axes, columns, strict=True)])
    found, member = np.unique(index, axis=1, return_inverse=True)
    order = np.argsort(member.ravel(), kind="stable")
    groups = np.split(values[order], np.cumsum(np.bincount(member.ravel()))[:-1])
    cells[tuple(found)] = [float(np.median(group)) for group in groups]
    empty = np.argwhere(np.isnan(cells))
    far = np.abs(empty[:, :, None] - found[None, :, :]).sum(axis=1)
    cells[tuple(empty.T)] = cells[tuple(found[:, far.argmin(axis=1)])]
    return Uneven(axes, cells)
