"""A model that computes in microseconds, and systems by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from kvarena.framework.composition import Parts, prepare
from kvarena.framework.run_info import RunInfo

SMALL = (
    *("model.num_layers=2", "model.hidden_size=64", "model.intermediate_size=128", "model.vocab_size=512"),
    *("model.num_heads=4", "model.num_kv_heads=2", "backend.threads=1", "tracking=none"),
)
Compose = Callable[..., Mapping[str, Any]]


def composed(*overrides: str) -> Mapping[str, Any]:
    """The resolved config of ``kvarena OVERRIDES``."""
    with initialize_config_module("kvarena.conf", version_base="1.3"):
        config = compose("config", overrides=[*SMALL, *overrides])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@pytest.fixture
def parts() -> Callable[..., Parts]:
    """The checked parts of ``kvarena OVERRIDES``."""

    def make(*overrides: str) -> Parts:
        config = composed(*overrides)
        return prepare(config, RunInfo(str(config["system"]), {"hardware": "local"}))

    return make
