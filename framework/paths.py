"""Run folders, and the config packages that distributions ship."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import yaml

from .schema import ConfigError

CONF_GROUP = "kvarena.conf"
BUILT_IN = "kvarena.conf"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # each run of a sweep reads two files for its label


def conf_plugins(points: Iterable[EntryPoint]) -> list[tuple[str, str]]:
    """(distribution, package) of every config package but the built-in one, in a fixed order.

    Raises
    ------
    ConfigError
        If a package is missing, or ships a file that another one ships too (Hydra would take the first).
    """
    owners: dict[Path, str] = {}
    found = []
    for point in sorted(points, key=lambda p: (p.value != BUILT_IN, p.value)):
        owner = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown distribution"
        for name in _configs(point.value, owner):
            if (other := owners.setdefault(name, owner)) != owner:
                raise ConfigError(f"config {name} is shipped twice: by {other} and {owner}; uninstall or rename one")
        if point.value != BUILT_IN:
            found.append((owner.split()[0], point.value))
    return found


def _configs(package: str, owner: str) -> Iterator[Path]:
    """The YAML files of ``package``, relative to it."""
    try:
        spec = importlib.util.find_spec(package)
    except ImportError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"config plugin {owner} is broken: there is no package {package}")
    for root in map(Path, spec.submodule_search_locations):
        yield from (path.relative_to(root) for path in root.rglob("*.yaml"))


def system_families(system: str, points: Iterable[EntryPoint]) -> dict[str, str]:
    """The option of each family that ``system`` picks: the primary config's, overridden by the system's YAML."""
    packages = [BUILT_IN, *(package for _, package in conf_plugins(points))]
    picked = _defaults(packages, "config.yaml")
    picked.update(_defaults(packages, f"system/{system}.yaml"))
    return picked


def _defaults(packages: list[str], name: str) -> dict[str, str]:
    """The defaults list of the first file ``name`` in ``packages``: option by group."""
    for package in packages:
        spec = importlib.util.find_spec(package)
        for root in spec.submodule_search_locations or () if spec else ():
            if (path := Path(root) / name).is_file():
                return _picked(yaml.load(path.read_text(encoding="utf-8"), LOADER))
    return {}


def _picked(config: Any) -> dict[str, str]:
    entries = config.get("defaults", []) if isinstance(config, dict) else []
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    return {str(key).removeprefix("override ").lstrip("/"): option for key, option in pairs}


def read_summary(folder: Path) -> dict[str, Any]:
    """The ``summary.json`` of ``folder``; empty if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((folder / "summary.json").read_text())
        return summary if isinstance(summary, dict) else {}
    return {}


def discard(folder: Path) -> None:
    """Take away what was written for a run that never began: ``.hydra``, and the folders that are empty without it."""
    shutil.rmtree(folder / ".hydra", ignore_errors=True)
    runs = folder.parent.parent
    for empty in (folder, folder.parent, *([runs] if runs.name == "runs" else [])):
        with contextlib.suppress(OSError):  # what is not empty stays
            empty.rmdir()
