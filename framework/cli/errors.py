"""Hydra's errors and our own as one line, with the nearest spelling of what is unknown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..schema import suggest

EXTRAS = {"hydra/launcher": ("joblib", "ray", "ray_aws", "submitit_local", "submitit_slurm")}


def explain(error: Exception, arguments: list[str]) -> str:
    """Hydra's and our own errors as one line, with the nearest spelling of what is unknown."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return _unknown_option(*error.missing_cfg_file.rpartition("/")[::2], list(error.options))
    if isinstance(error, OverrideParseException):
        return f"cannot read the argument {error.override!r}, expected key=value: {_first_line(error)}"
    if str(error).startswith("Ambiguous value for argument"):
        return f"{str(error).splitlines()[0]}; to sweep over several values, add -m"
    if sweep := re.match(r"Sweep parameters ('[^']+') requires --multirun", str(error)):
        return f"{sweep[1]} sweeps over several values; add -m"
    if unknown := re.search(r"Could not (?:override|append to config|delete[^']*) '([^']+)'", str(error)):
        key = unknown[1].split("@")[0]
        group = key.split(".")[0]
        if any(argument.startswith(f"{group}=") and "," in argument for argument in arguments):
            return f"{key} is set for all jobs, but {group} differs between them; write '{key}=choice(VALUE)'"
        return f"unknown key {key!r}{_nearest(key, arguments)}; see kvarena --help"
    return " ".join(str(error).split())


def _nearest(key: str, arguments: list[str]) -> str:
    """The nearest key that there is; of the same option, if that is right."""
    known = _known_keys(key, arguments)
    group = key.partition(".")[0]
    if "." not in key or group not in known or group == "hydra":
        return suggest(key, known)
    own = [name for name in known if name.startswith(f"{group}.")]
    return suggest(key, own) if own else f": the chosen {group} has no knobs"


def _unknown_option(group: str, option: str, options: list[str]) -> str:
    if option in EXTRAS.get(group, ()):
        extra = option.partition("_")[0]
        return f"{group}={option} needs an extra: python -m pip install 'kvarena[{extra}]'"
    known = sorted({*options, *EXTRAS.get(group, ())})
    return f"unknown {group} {option!r}; known: {', '.join(options)}{suggest(option, known)}"


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and "hydra.cc" not in line]
    return lines[-1].strip() if lines else type(error).__name__


def _known_keys(key: str, arguments: list[str]) -> list[str]:
    """Groups and keys of the config that ``arguments`` compose without ``key``."""
    overrides = [a for a in arguments if "=" in a and "," not in a and a[0].isalpha() and not a.startswith(key)]
    ready = GlobalHydra.instance().is_initialized()  # in a sweep's hook
    in_hydra = key.startswith("hydra")
    try:
        with nullcontext() if ready else initialize_config_module("kvarena.conf", version_base="1.3"):
            config = compose("config", overrides, return_hydra_config=in_hydra)
    except (HydraException, OmegaConfBaseException):
        return []
    keys = _keys(OmegaConf.to_container(config.hydra), "hydra.") if in_hydra else _keys(OmegaConf.to_container(config))
    groups = ["hydra/launcher", "hydra/sweeper", "hydra/job_logging"] if in_hydra else []
    return [*groups, *(known for known in keys if not known.endswith(".name"))]


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from _keys(value, f"{prefix}{key}.")
