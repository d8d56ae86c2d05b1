"""The schemas of ``conf/model``: which model the torch backend runs. No torch here: configs are checked without it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..schema import ConfigError, build, suggest

ModelDtype = Literal["float32", "bfloat16", "float16"]
CHECKPOINTS = Path(__file__).parents[1] / "quality" / "checkpoints"


@dataclass(frozen=True)
class RandomModel:
    """A Hugging Face architecture with seeded random weights: nothing to download, and the same times.

    Attributes
    ----------
    architecture: ``model_type`` of a transformers config, e.g. ``llama``, ``qwen3``, ``opt``, ``gemma3_text``.
    num_kv_heads, head_dim: None: as many as query heads; hidden_size / num_heads.
    max_positions: the longest context in tokens.
    config: further keys of the architecture's own config, e.g. ``{sliding_window: 64}``.
    """

    kind: Literal["random"] = "random"
    architecture: str = "llama"
    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 1024
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int | None = None
    head_dim: int | None = None
    max_positions: int = 8192
    tied_embeddings: bool = False
    dtype: ModelDtype = "float32"
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size is {self.hidden_size}, expected a multiple of num_heads = {self.num_heads}")
        if self.num_kv_heads is not None and (self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads):
            raise ValueError(f"num_kv_heads is {self.num_kv_heads}, expected a divisor of num_heads = {self.num_heads}")


@dataclass(frozen=True)
class HfModel:
    """Weights and tokenizer by name or path.

    Attributes
    ----------
    path: a local directory written by ``save_pretrained``, or a name on the hub; must be given to load it.
    dtype: None: as the weights were saved.
    """

    kind: Literal["hf"] = "hf"
    path: str | None = None
    dtype: ModelDtype | None = None


@dataclass(frozen=True)
class ShippedModel:
    """A small trained model that comes with the package, as ``framework/quality/checkpoints`` holds it.

    Attributes
    ----------
    checkpoint: the folder's name: ``recall`` or ``bytes``.
    dtype: None: as the weights were saved.
    """

    kind: Literal["shipped"] = "shipped"
    checkpoint: str = "recall"
    dtype: ModelDtype | None = None

    def __post_init__(self) -> None:
        if self.checkpoint not in (known := shipped_checkpoints()):
            near = suggest(self.checkpoint, known)
            raise ValueError(f"checkpoint is {self.checkpoint!r}, expected one of {', '.join(known)}{near}")

    @property
    def path(self) -> str:
        """The folder of the weights."""
        return os.fspath(CHECKPOINTS / self.checkpoint)

    def config(self) -> dict[str, Any]:
        """The checkpoint's ``config.json``."""
        return dict(json.loads((CHECKPOINTS / self.checkpoint / "config.json").read_text()))


ModelKnobs = RandomModel | HfModel | ShippedModel


def shipped_checkpoints() -> tuple[str, ...]:
    """The names of the checkpoints that come with the package."""
    return tuple(sorted(config.parent.name for config in CHECKPOINTS.glob("*/config.json")))


def model_knobs(knobs: Mapping[str, Any]) -> ModelKnobs:
    """The knobs of ``conf/model/*.yaml`` as their dataclass; ``name`` is the model's label and no knob of it.

    Raises
    ------
    ConfigError
        If ``kind`` is none of ``random``, ``hf`` and ``shipped``, or a knob is unknown, missing or ill-typed.
    """
    given = {key: value for key, value in knobs.items() if key != "name"}
    where = f"model={knobs.get('name', given.get('kind', '?'))}"
    kind = given.get("kind")
    if kind == "random":
        return build(RandomModel, given, where)
    if kind == "shipped":
        return build(ShippedModel, given, where)
    if kind != "hf":
        kinds = "'random', 'hf' or 'shipped'"
        raise ConfigError(f"{where}: kind is {kind!r}, expected {kinds} (the torch backend runs no other)")
    return build(HfModel, given, where)
