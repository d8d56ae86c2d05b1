"""Find out whose tables a path holds, and read them."""

from __future__ import annotations

from pathlib import Path

from ...schema import ConfigError
from ..contract import ModelShape
from ..hardware import Hardware
from . import aiconfigurator, llmservingsim, own, vidur
from .operators import OperatorTables

_FIGURES = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size", "dtype_bytes")


def load_tables(path: Path, shape: ModelShape, hardware: Hardware) -> OperatorTables:
    """The measured times of ``shape`` on ``hardware`` (its tensor-parallel degree included) under ``path``: a folder in
    our own format, or one of aiconfigurator's, LLMServingSim's or vidur's.

    Raises
    ------
    ConfigError
        If there is no such folder, nobody's format is recognised, a file is bad, or the model or the number of devices
        is not the one that was measured.
    """
    if not path.is_dir():
        raise ConfigError(f"backend.tables: {path} is not a folder")
    if own.is_own(path):
        tables = own.load(path)
        _check_fit(path, tables, shape, hardware)
        return tables
    folder = llmservingsim.find(path, hardware.devices)
    if folder is not None:
        return llmservingsim.load(folder, shape, hardware.devices)
    if aiconfigurator.is_system(path):
        return aiconfigurator.load(path, shape, hardware)
    if vidur.find(path) is not None:
        return vidur.load(path, shape, hardware)
    raise ConfigError(
        f"backend.tables: {path} holds no tables that are known: operators.parquet (our own), gemm/vllm/*/ or"
        " attention/vllm/*/ (aiconfigurator), dense.csv (LLMServingSim) or mlp.csv (vidur)"
    )


def _check_fit(path: Path, tables: OperatorTables, shape: ModelShape, hardware: Hardware) -> None:
    for name in _FIGURES:
        found, wanted = getattr(tables.shape, name), getattr(shape, name)
        if found != wanted:
            raise ConfigError(
                f"backend.tables: {path} measured {tables.shape.name!r} with {name}={found},"
                f" but model {shape.name!r} has {name}={wanted}"
            )
    if tables.devices != hardware.devices:
        raise ConfigError(
            f"backend.tables: {path} was measured on {tables.devices} devices,"
            f" but hardware {hardware.name!r} has {hardware.devices}"
        )
