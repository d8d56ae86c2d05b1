"""LongBench's datasets: prompt, metric and length of the reply of each, from ``longbench.yaml``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..schema import ConfigError, build

_PLACES = ("{context}", "{input}")


@dataclass(frozen=True, slots=True)
class Dataset:
    """How the rows of a dataset are asked and judged.

    Attributes
    ----------
    metric: of :data:`scoring.METRICS`. tokens: of a reply.
    prompt: ``{context}`` and ``{input}`` stand for a row's texts; the context comes first.
    one_line: only the first line of a reply counts.
    """

    name: str
    metric: str
    tokens: int
    prompt: str
    one_line: bool = False


@cache
def _datasets() -> Mapping[str, Dataset | None]:
    """By name; None: not supported."""
    from omegaconf import OmegaConf

    content: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_suffix(".yaml")))
    return {name: one and build(Dataset, {"name": name, **one}, name) for name, one in content.items()}


def known_dataset(name: str, where: str) -> Dataset | None:
    """LongBench's dataset ``name`` (LongBench-E's ``_e`` does not count); None where it has no such.

    Raises
    ------
    ConfigError
        Naming ``where``, if its metric is not supported.
    """
    name = name.removesuffix("_e")
    if name in _datasets() and _datasets()[name] is None:
        chinese = "which LongBench judges by Chinese words that a segmenter has cut; this is not supported"
        other = "take 'dataset' away to look for the answers as they are"
        raise ConfigError(f"{where}: 'dataset' is {name!r}, {chinese}: {other}")
    return _datasets().get(name)


def split_prompt(prompt: str, context: str, asked: str) -> tuple[str, str]:
    """The text up to the end of ``context``, and what follows it."""
    before, _, after = prompt.partition(_PLACES[0])
    return before + context, after.replace(_PLACES[1], asked)


def read_prompts(path: Path) -> dict[str, str]:
    """Prompts by dataset, from a JSON object such as LongBench's ``dataset2prompt.json``.

    Raises
    ------
    ConfigError
        If the file is not one, or a prompt lacks ``{context}`` or has ``{input}`` before it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"task.prompts: {path} cannot be read as JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not all(isinstance(prompt, str) for prompt in content.values()):
        raise ConfigError(f"task.prompts: {path} is no object of texts, expected {{dataset: prompt}}")
    for name, prompt in content.items():
        before, found, _ = prompt.partition(_PLACES[0])
        if not found or _PLACES[1] in before:
            places = "must have {context}, and {input} only after it"
            raise ConfigError(f"task.prompts: {path}: the prompt of {name!r} {places}")
    return content
