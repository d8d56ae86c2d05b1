"""A composed config, as the engine takes it."""

from __future__ import annotations

from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ..run_info import RunInfo, run_label


def plain_config(config: DictConfig) -> dict[str, Any]:
    """The config without Hydra's part, resolved, as plain containers; a value that is still ``???`` is an error."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    plain = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "resume"}


def run_info(config: DictConfig, sweep: str | None, number: int | None) -> RunInfo:
    """What ``config``, which is Hydra's part, knows of the job: the options chosen. Its place in the sweep is given."""
    choices = {str(group): str(option) for group, option in config.runtime.choices.items() if option is not None}
    words = tuple(word for word in config.overrides.task if not word.startswith("resume="))
    return RunInfo(run_label(choices), choices, words, sweep, number)


def is_sweep(config: DictConfig) -> bool:
    """``config``, Hydra's part, is of a job in a sweep."""
    return bool(config.mode == RunMode.MULTIRUN)
