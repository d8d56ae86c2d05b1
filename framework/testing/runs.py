"""Small runs of the real engine: on a tiny model, in memory far too small, or on the virtual clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from ..fidelity.systems import system_config
from ..options import config_folders, read_option
from ..paths import CONF_GROUP, system_families
from ..policy import FAMILIES
from ..run_info import RunInfo
from ..schema import ConfigError, suggest

Row = dict[str, Any]
KEYS = ("save_tokens", "save_decisions", "seed")
NESTED = (*FAMILIES, "memory", "workload", "model", "backend")
MODEL = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "num_heads": 4}
HEADS = {"num_kv_heads": 2, "head_dim": 16, "max_positions": 512}
WORKLOAD = {"limit": 8, "rate": 20.0, "think_time_s": 0.1, "max_context": 224, "system_prompt_tokens": 24}
LENGTHS = {"input_scale": 0.5, "output_scale": 0.05}
MEMORY = {"page_size": 8, "device_tokens": 384, "host_tokens": 256, "disk_tokens": 256}
GROUPS = {"memory": "default", "workload": "synthetic_chat", "tracking": "none", "task": "serve"}
BACKENDS = {"torch": {"model": "tiny", "hardware": "local"}, "simulated": {"model": "llama-3-8b", "hardware": "h100"}}


@dataclass(frozen=True)
class SmallRun:
    """The folder of a run, as ``kvarena`` leaves it, and its ``summary.json``."""

    folder: Path
    summary: dict[str, Any]

    @cached_property
    def tokens(self) -> dict[tuple[int, int], list[int]]:
        """The reply to each turn: (conversation, turn) -> token ids."""
        return {(row["conversation"], row["turn"]): row["output_ids"] for row in self.rows("requests")}

    @property
    def evicted_pages(self) -> dict[str, int]:
        """By tier."""
        found: dict[str, int] = self.summary["cache"]["evicted_pages"]
        return found

    def rows(self, name: Literal["requests", "steps", "transfers", "decisions"]) -> list[Row]:
        """The rows of ``<name>.parquet``, in order."""
        import pyarrow.parquet as pq

        rows: list[Row] = pq.read_table(self.folder / f"{name}.parquet").to_pylist()
        return rows


def small_config(backend: Literal["torch", "simulated"] = "simulated", system: str = "vllm", **chosen: Any) -> Row:
    """The config of a small run: eight chats whose contexts do not fit on the device, nor all on the host.

    Parameters
    ----------
    backend: ``torch``: a tiny model computes every token; ``simulated``: virtual clock, the same run bit for bit.
    system: its policies, where nothing else is chosen.
    chosen: a family with an option (``eviction="lru"``) or with name and knobs (``eviction={"name": "lru"}``); what
        differs in ``memory``, ``workload``, ``model`` or ``backend``; ``save_decisions``, ``seed``.

    Raises
    ------
    ConfigError
        If there is no such system, option or key.
    """
    picked = system_families(system, entry_points(group=CONF_GROUP))
    groups = {**picked, **GROUPS, **BACKENDS[backend], "backend": backend}
    names = (*FAMILIES, "memory", "workload", "tracking", "task", "backend", "model", "hardware")
    folders = list(config_folders())
    config: Row = {group: _option(group, groups[group], folders) for group in names}
    config = system_config({**config, "seed": 0, "save_tokens": True, "save_decisions": False}, system)
    _merge(config, {"workload": {**WORKLOAD, **LENGTHS}, "memory": MEMORY})
    if backend == "torch":
        _merge(config, {"model": {**MODEL, **HEADS}, "backend": {"threads": 1}})
    _merge(config, chosen)
    return config


def small_run(
    folder: Path, backend: Literal["torch", "simulated"] = "simulated", system: str = "vllm", **chosen: Any
) -> SmallRun:
    """Serve what :func:`small_config` says, into ``folder``. On either backend it takes a second or two.

    On ``torch`` the tokens are the model's own: those of a lossless policy are those of ``system="vllm_stateless"``,
    which keeps nothing. A simulation makes them up, but all its rows are reproducible: two policies that decide the
    same have the same.

    Raises
    ------
    ConfigError
        If the config cannot run.
    """
    from ..serve import serve  # the engine is loaded when something runs

    config = small_config(backend, system, **chosen)
    folder.mkdir(parents=True, exist_ok=True)
    choices = {group: str(config[group]["name"]) for group in FAMILIES}
    return SmallRun(folder, serve(config, folder, RunInfo(system, {**choices, "system": system})))


def _option(group: str, name: str, folders: Iterable[Path] | None = None) -> Row:
    found = read_option(f"{group}/{name}.yaml", folders)
    if found is None:
        raise ConfigError(f"there is no {group}={name}")
    return found


def _merge(config: Row, chosen: Mapping[str, Any]) -> None:
    for key, value in chosen.items():
        if key in KEYS:
            config[key] = value
        elif key not in NESTED:
            raise ConfigError(f"unknown key {key!r}{suggest(key, (*KEYS, *NESTED))}")
        elif isinstance(value, str):
            config[key] = _option(key, value)
        elif "name" in value:
            config[key] = dict(value)
        else:
            config[key] = {**config[key], **value}
