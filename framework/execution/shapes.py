"""Model shapes from plain knobs: what the simulator needs of a model, with no weights and no framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..schema import ConfigError, build
from .contract import ModelShape
from .model_knobs import HfModel, RandomModel, ShippedModel, model_knobs

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1}
GATED_MLP = {"llama": True, "mistral": True, "qwen2": True, "qwen3": True, "opt": False, "gpt_neox": False}
LEARNED_POSITIONS = {"opt": 2}  # rows beyond max_positions


@dataclass(frozen=True, slots=True)
class ShapePreset:
    """The architecture of a decoder: the schema of a shape preset in ``conf/model/``.

    Attributes
    ----------
    intermediate_size: width of the MLP; ``gated_mlp``: it has three matrices (SwiGLU and the like) instead of two.
    tied_embeddings: the LM head is the token embedding.
    max_positions: the longest context; ``learned_positions``: rows of a learned position embedding (0: rotary).
    dtype: of the weights; in float8 they are read as such and multiplied in 16 bits.
    kv_dtype: of the KV cache; None: that of the weights.
    """

    name: str
    kind: Literal["shape"]
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    gated_mlp: bool
    vocab_size: int
    tied_embeddings: bool
    max_positions: int
    learned_positions: int = 0
    dtype: Literal["float16", "bfloat16", "float32", "float8"] = "float16"
    kv_dtype: Literal["float16", "bfloat16", "float32", "float8"] | None = None

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size"):
            self._require(name, 1)
        for name, least in (("vocab_size", 2), ("max_positions", 1), ("learned_positions", 0)):
            self._require(name, least)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}")

    def _require(self, name: str, least: int) -> None:
        if getattr(self, name) < least:
            raise ValueError(f"{name}={getattr(self, name)!r} must be >= {least}")

    @property
    def num_params(self) -> int:
        """All matrices and embeddings; norms and biases (under 0.1 %) are left out."""
        attention = 2 * self.hidden_size * (self.num_heads + self.num_kv_heads) * self.head_dim
        mlp = (3 if self.gated_mlp else 2) * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + mlp) + self.vocab_size * self.hidden_size + self.embedding_params

    @property
    def embedding_params(self) -> int:
        """Those that are only looked up: positions, and the token embedding unless it is the LM head too."""
        rows = self.learned_positions + (0 if self.tied_embeddings else self.vocab_size)
        return rows * self.hidden_size


def _random_preset(name: str, model: RandomModel) -> ShapePreset:
    """The shape of a model that the torch backend fills with random weights."""
    if model.architecture not in GATED_MLP or model.config:
        raise ConfigError(
            f"model={name}: the simulated backend knows the shape of a random model only if its architecture is one of"
            f" {', '.join(GATED_MLP)} and its config is empty, found {model.architecture!r} and {model.config!r}"
        )
    extra = LEARNED_POSITIONS.get(model.architecture)
    return ShapePreset(
        name=name,
        kind="shape",
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads or model.num_heads,
        head_dim=model.head_dim or model.hidden_size // model.num_heads,
        intermediate_size=model.intermediate_size,
        gated_mlp=GATED_MLP[model.architecture],
        vocab_size=model.vocab_size,
        tied_embeddings=model.tied_embeddings,
        max_positions=model.max_positions,
        learned_positions=0 if extra is None else model.max_positions + extra,
        dtype=model.dtype,
    )


def _shipped_preset(name: str, model: ShippedModel) -> ShapePreset:
    """The shape of a checkpoint that comes with the package: each is a Llama."""
    config = model.config()
    random = RandomModel(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        max_positions=config["max_position_embeddings"],
        tied_embeddings=config["tie_word_embeddings"],
        dtype=model.dtype or config["dtype"],
    )
    return _random_preset(name, random)


def _preset(knobs: Mapping[str, Any]) -> ShapePreset:
    name = str(knobs.get("name", "?"))
    if knobs.get("kind") == "shape":
        return build(ShapePreset, knobs, f"model={name}")
    model = model_knobs(knobs)
    if isinstance(model, ShippedModel):
        return _shipped_preset(name, model)
    if isinstance(model, HfModel):
        raise ConfigError(f"model={name}: the simulated backend cannot tell its shape; choose a shape preset instead")
    return _random_preset(name, model)


def model_shape(knobs: Mapping[str, Any]) -> ModelShape:
    """The shape that the knobs of a ``model`` option describe.

    Raises
    ------
    ConfigError
        If the option's shape is not known without loading it, or a knob is unknown, ill-typed or out of range.
    """
    preset = _preset(knobs)
    return ModelShape(
        name=preset.name,
        num_layers=preset.num_layers,
        hidden_size=preset.hidden_size,
        num_heads=preset.num_heads,
        num_kv_heads=preset.num_kv_heads,
        head_dim=preset.head_dim,
        vocab_size=preset.vocab_size,
        num_params=preset.num_params,
        embedding_params=preset.embedding_params,
        dtype_bytes=DTYPE_BYTES[preset.dtype],
        max_positions=preset.max_positions,
        kv_dtype=DTYPE_BYTES[preset.kv_dtype] if preset.kv_dtype else 0,
    )
