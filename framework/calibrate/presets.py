"""The shape of a loaded model as a preset, which the simulator takes where it cannot load the model itself."""

from __future__ import annotations

from typing import Any

from ..execution.contract import ModelShape

_NAMES = {4: "float32", 2: "bfloat16"}


def shape_preset(shape: ModelShape, name: str) -> dict[str, Any]:
    """The keys of ``conf/model/<name>.yaml`` for ``shape``.

    The width of the MLP is such that the parameters add up, with three matrices (all that the simulator knows of it).
    """
    tied = shape.embedding_params < shape.vocab_size * shape.hidden_size
    attention = 2 * shape.hidden_size * (shape.num_heads + shape.num_kv_heads) * shape.head_dim
    layers = shape.num_params - shape.embedding_params - shape.vocab_size * shape.hidden_size
    width = round((layers / shape.num_layers - attention) / (3 * shape.hidden_size))
    return {
        "name": name,
        "kind": "shape",
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": max(1, width),
        "gated_mlp": True,
        "vocab_size": shape.vocab_size,
        "tied_embeddings": tied,
        "max_positions": shape.max_positions,
        "learned_positions": 0,
        "dtype": _NAMES.get(shape.dtype_bytes, "float32"),
        "kv_dtype": None,
    }
