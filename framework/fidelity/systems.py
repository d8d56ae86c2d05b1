"""The config of another system: what ``system=...`` on the command line would have chosen."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from ..options import config_folders, read_option
from ..paths import CONF_GROUP, system_families
from ..policy import FAMILIES
from ..run_info import RunInfo
from ..schema import ConfigError, suggest


def system_config(config: Mapping[str, Any], system: str) -> dict[str, Any]:
    """``config`` with the families of ``system``, and what else its YAML sets.

    Raises
    ------
    ConfigError
        If there is no such system.
    """
    folders = list(config_folders())
    own = read_option(f"system/{system}.yaml", folders)
    if own is None:
        known = sorted({path.stem for root in folders for path in (root / "system").glob("*.yaml")})
        raise ConfigError(f"unknown system {system!r}; known: {', '.join(known)}{suggest(system, known)}")
    changed = copy.deepcopy(dict(config))
    for family, option in system_families(system, entry_points(group=CONF_GROUP)).items():
        if family in FAMILIES:
            changed[family] = read_option(f"{family}/{option}.yaml", folders)
    for key, value in own.items():
        if key != "defaults":
            changed[key] = {**changed.get(key, {}), **value} if isinstance(value, dict) else value
    return changed


def system_info(info: RunInfo, system: str) -> RunInfo:
    """The run's info under the label of ``system``."""
    families = system_families(system, entry_points(group=CONF_GROUP))
    picked = {family: option for family, option in families.items() if family in FAMILIES}
    return RunInfo(system, {**info.choices, "system": system, **picked}, info.overrides, info.sweep, info.job)


def refuse_families(info: RunInfo) -> None:
    """The systems choose the policies: what the command line says of one would be lost.

    Raises
    ------
    ConfigError
        Naming the first such argument.
    """
    for word in info.overrides:
        key = word.split("=")[0].lstrip("+~")
        if key.split(".")[0] in (*FAMILIES, "system"):
            raise ConfigError(f"task=fidelity takes the policies of task.systems; {word} would change none of its runs")
