"""``--cfg job``: the config of a run with what each key means, as its YAML files say it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from ..options import config_folders

KEY = re.compile(r"([A-Za-z_]\w*):(?:.*?\s(#\s.*)|.*)$")


def wants_config(words: Sequence[str]) -> list[str] | None:
    """The overrides of ``--cfg job OVERRIDES``, in any order; None if it is not that. The rest is left to Hydra."""
    joined = [word for word in words if word not in ("--cfg=job", "-cjob")]
    for flag in ("--cfg", "-c"):
        if flag in joined[:-1] and joined[joined.index(flag) + 1] == "job":
            at = joined.index(flag)
            del joined[at : at + 2]
    found = len(joined) < len(words)
    return joined if found and not any(word.startswith("-") for word in joined) else None


def print_config(overrides: Sequence[str]) -> None:
    """Print the config of the run with ``overrides``: YAML that says the same as Hydra's, with comments.

    Raises
    ------
    HydraException
        If it does not compose.
    """
    with initialize_config_module("kvarena.conf", version_base="1.3", job_name="kvarena"):
        config = compose("config", list(overrides), return_hydra_config=True)
        choices = dict(config.hydra.runtime.choices)
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    print("\n".join(_lines(own, choices)))


def _lines(config: DictConfig, choices: Mapping[str, Any]) -> Iterator[str]:
    groups = [str(key) for key in config if key in choices and isinstance(config[key], DictConfig)]
    first = [key for key in ("task", "workload", "backend", "model", "hardware", "memory") if key in groups]
    yield f"# kvarena system={choices.get('system')} experiment={choices.get('experiment')}"
    top = OmegaConf.masked_copy(config, [str(key) for key in config if key not in groups])
    yield from documented(_source("config.yaml"), top)
    for group in (*first, *(group for group in groups if group not in first)):
        yield f"\n# {group}={choices[group]}"
        yield f"{group}:"
        yield from (
            f"  {line}".rstrip() for line in documented(_source(f"{group}/{choices[group]}.yaml"), config[group])
        )


def documented(source: str, config: DictConfig) -> Iterator[str]:
    """The lines of ``config`` as YAML, unresolved, with the comments that its file ``source`` has for its keys."""
    left, comments = [str(key) for key in config], list[str]()
    for line in source.splitlines():
        if line.startswith("#") and "@package" not in line:
            comments.append(line)
        elif found := KEY.match(line):
            if found[1] in left:
                left.remove(found[1])
                yield from comments
                yield from _key(config, found[1], found[2])
            comments = []
        elif not line.strip():
            comments = []
    for key in left:
        yield from _key(config, key, None)


def _key(config: DictConfig, key: str, comment: str | None) -> Iterator[str]:
    first, *rest = OmegaConf.to_yaml(OmegaConf.masked_copy(config, [key])).splitlines()
    yield f"{first}  {comment}" if comment else first
    yield from rest


def _source(name: str) -> str:
    """The text of the YAML file ``name``, of whichever distribution."""
    for folder in config_folders():
        if (path := folder / name).is_file():
            return path.read_text(encoding="utf-8")
    return ""
