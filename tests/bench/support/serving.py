"""Serve a workload in this process, with a system by name, and keep what happened."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from kvarena.framework.backends import open_backend
from kvarena.framework.composition import prepare
from kvarena.framework.metrics import KeptRecords
from kvarena.framework.opening import open_workload
from kvarena.framework.run_info import RunInfo
from kvarena.framework.serve import Server


@dataclass(frozen=True)
class Served:
    """``wall_s``: serving alone, without loading."""

    recording: KeptRecords
    wall_s: float


def configure(*overrides: str) -> Mapping[str, Any]:
    """The resolved config of ``kvarena OVERRIDES``."""
    with initialize_config_module("kvarena.conf", version_base="1.3"):
        config = compose("config", overrides=["tracking=none", *overrides])
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def serve(*overrides: str) -> Served:
    """Run ``kvarena OVERRIDES`` without a run folder."""
    config = configure(*overrides)
    parts = prepare(config, RunInfo(label=str(config["system"])))
    backend = open_backend(parts)
    try:
        workload = open_workload(parts, backend.shape.vocab_size, backend.tokenizer)
        recording = KeptRecords()
        server = Server(parts, backend, workload)
        start_s = time.perf_counter()
        server.run(recording, lambda progress: None)
        wall_s = time.perf_counter() - start_s
    finally:
        backend.close()
    return Served(recording, wall_s)
