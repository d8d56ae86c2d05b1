"""Our own format of operator tables: a folder with ``operators.parquet`` and ``meta.json``.

``operators.parquet`` holds a row per measured point: ``operator`` (dense, head, prefill, decode, prefills, mixed,
uneven_decode, uneven_mixed), the axes ``tokens`` (of the batch, or queries of one segment), ``context`` (tokens before
these), ``sequences``, ``keys`` (that each decoding sequence sees) and ``share`` (how uneven they are), 0 where the
operator has no such axis, and ``seconds`` of all layers together.
``meta.json`` says what was measured: ``{"schema": 1, "source": ..., "devices": ..., "shape": {...}, "iteration_s": ...,
"sequence_s": ..., "prompt_s": ..., "links": {...}, "unmeasured": [...]}``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...schema import ConfigError, build
from ..contract import ModelShape
from .curves import Curve, Floats, Grid
from .operators import AttentionTables, LinkTimes, OperatorTables, Uneven
from .reading import Table, finite, positive, read_parquet, whole

SCHEMA = 1
OPERATORS = "operators.parquet"
META = "meta.json"
AXES = ("tokens", "context", "sequences", "keys", "share")
_CURVES = {"dense": "tokens", "head": "sequences"}
_GRIDS = {
    "prefill": ("tokens", "context"),
    "decode": ("sequences", "keys"),
    "prefills": ("sequences", "tokens"),
    "mixed": ("tokens", "context", "sequences", "keys"),
}
_UNEVEN = {"uneven_decode": ("sequences", "share"), "uneven_mixed": ("tokens", "sequences", "share", "keys")}
_KNOWN = (*_CURVES, *_GRIDS, *_UNEVEN)


def save(tables: OperatorTables, folder: Path) -> None:
    """See :meth:`.OperatorTables.save`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    operators, columns = list[str](), {name: list[Floats]() for name in (*AXES, "seconds")}
    for operator, axes, points, seconds in _points(tables):
        operators += [operator] * len(seconds)
        columns["seconds"].append(seconds)
        for axis in AXES:
            columns[axis].append(points[axes.index(axis)] if axis in axes else np.zeros(len(seconds)))
    arrays = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in columns.items()}
    table = pa.table({"operator": pa.array(operators, pa.string()), **arrays})
    pq.write_table(table, folder / OPERATORS, compression="zstd")
    (folder / META).write_text(json.dumps(_meta(tables), indent=2) + "\n", encoding="utf-8")


def _points(tables: OperatorTables) -> list[tuple[str, tuple[str, ...], list[Floats], Floats]]:
    found = list[tuple[str, tuple[str, ...], list[Floats], Floats]]()
    for operator, axis in _CURVES.items():
        curve: Curve | None = getattr(tables, operator)
        if curve is not None:
            found.append((operator, (axis,), [curve.x], curve.seconds))
    for operator, axes in _GRIDS.items():
        grid: Grid | None = getattr(tables.attention, operator)
        if grid is not None:
            found.append((operator, axes, *grid.points()))
    for operator, axes in _UNEVEN.items():
        uneven: Uneven | None = getattr(tables.attention, operator)
        if uneven is not None:
            points = np.meshgrid(*uneven.axes, indexing="ij")
            found.append((operator, axes, [axis.ravel() for axis in points], uneven.seconds.ravel()))
    return found


def _meta(tables: OperatorTables) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "source": tables.source,
        "devices": tables.devices,
        "shape": asdict(tables.shape),
        "iteration_s": tables.iteration_s,
        "sequence_s": tables.sequence_s,
        "prompt_s": tables.prompt_s,
        "links": asdict(tables.links),
        "unmeasured": list(tables.unmeasured),
    }


def is_own(folder: Path) -> bool:
    """``folder`` looks like one that :func:`save` wrote."""
    return (folder / OPERATORS).is_file() or (folder / META).is_file()


def load(folder: Path) -> OperatorTables:
    """Read what :func:`save` wrote.

    Raises
    ------
    ConfigError
        If a file is missing or unreadable, or holds what tables must not; the file, column and row are named.
    """
    meta = _read_meta(folder / META)
    table = read_parquet(folder / OPERATORS, ("operator", *AXES, "seconds"))
    unknown = sorted(set(table.texts("operator")) - set(_KNOWN))
    if unknown:
        raise ConfigError(f"{table.path}: unknown operator {unknown[0]!r}; known are {', '.join(_KNOWN)}")
    finite(table, "seconds")
    for operator in (*_CURVES, *_GRIDS):
        positive(table.where("operator", operator), "seconds")
    for axis in AXES[:-1]:
        whole(table, axis)
    finite(table, "share")
    curves = {name: _curve(table, name) for name in _CURVES}
    grids = {name: _grid(table, name) for name in _GRIDS}
    corrections = {name: _uneven(table, name) for name in _UNEVEN}
    found: dict[str, Any] = {name: part for name, part in {**grids, **corrections}.items() if part is not None}
    try:
        return OperatorTables(
            source=meta["source"],
            shape=build(ModelShape, meta["shape"], f"{folder / META}: shape"),
            devices=meta["devices"],
            dense=curves["dense"],
            head=curves["head"],
            attention=AttentionTables(**found),
            iteration_s=meta["iteration_s"],
            sequence_s=meta["sequence_s"],
            prompt_s=meta["prompt_s"],
            links=build(LinkTimes, meta["links"], f"{folder / META}: links"),
            unmeasured=tuple(meta["unmeasured"]),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error) if isinstance(error, ConfigError) else f"{folder / META}: {error}") from error


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    wanted = ("schema", "source", "devices", "shape", "iteration_s", "sequence_s", "prompt_s", "links", "unmeasured")
    missing = [name for name in wanted if not isinstance(meta, dict) or name not in meta]
    if missing:
        raise ConfigError(f"{path}: {missing[0]!r} is missing")
    if meta["schema"] != SCHEMA:
        raise ConfigError(f"{path}: schema is {meta['schema']!r}, expected {SCHEMA}")
    return dict(meta)


def _curve(table: Table, operator: str) -> Curve | None:
    rows = table.where("operator", operator)
    if not len(rows):
        return None
    return Curve.of_points(rows.numbers(_CURVES[operator]), rows.numbers("seconds"))


def _grid(table: Table, operator: str) -> Grid | None:
    rows = table.where("operator", operator)
    if not len(rows):
        return None
    return Grid.of_points([rows.numbers(axis) for axis in _GRIDS[operator]], rows.numbers("seconds"))


def _uneven(table: Table, operator: str) -> Uneven | None:
    rows = table.where("operator", operator)
    if not len(rows):
        return None
    columns = [rows.numbers(axis) for axis in _UNEVEN[operator]]
    axes = tuple(np.unique(column) for column in columns)
    cells = np.full([len(axis) for axis in axes], np.nan)
    cells[tuple(np.searchsorted(axis, column) for axis, column in zip(axes, columns, strict=True))] = rows.numbers(
        "seconds"
    )
    if np.isnan(cells).any():
        raise ConfigError(f"{table.path}: operator {operator!r} lacks points: it must be a full grid")
    return Uneven(axes, cells)
