"""The YAML files of config groups, read without Hydra: built-in ones and those of other distributions."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from .paths import BUILT_IN, CONF_GROUP, conf_plugins


def read_option(name: str, folders: Iterable[Path] | None = None) -> dict[str, Any] | None:
    """The content of the first file ``name`` (``"eviction/lru.yaml"``) of the config packages; None if none has it.

    ``folders``: theirs, where they are known already.

    Raises
    ------
    ConfigError
        If a config package is broken or ships a file twice.
    """
    for root in config_folders() if folders is None else folders:
        if (root / name).is_file():
            return read_yaml(root / name)
    return None


def config_folders() -> Iterator[Path]:
    """The folders of all config packages, the built-in one first; ConfigError as in :func:`read_option`."""
    for package in (BUILT_IN, *(package for _, package in conf_plugins(entry_points(group=CONF_GROUP)))):
        yield from package_folders(package)


def package_folders(package: str) -> Iterator[Path]:
    """Where ``package`` is installed; nothing if it is not."""
    try:
        spec = importlib.util.find_spec(package)
    except ImportError:
        return
    yield from map(Path, spec.submodule_search_locations or () if spec else ())


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the file ``path``, unresolved."""
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict), f"{path} holds no mapping"
    return {str(key): value for key, value in content.items()}
