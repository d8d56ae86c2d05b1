"""What tells stored K/V of one model from those of another: a short text of everything that their bytes depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import torch
from torch import nn

from .contract import ModelShape

SAMPLES = 1024  # values per weight: any training changes all of them
_NAMES = ("transformers_version", "_name_or_path")  # of a config: where it came from, not what it computes


def page_format(
    module: nn.Module,
    shape: ModelShape,
    page_size: int,
    dtype: str,
    rotated: bool,
    sharing: Mapping[int, int] | None = None,
) -> str:
    """The format of a page: pages with equal keys and equal formats hold equal K/V.

    Parameters
    ----------
    module: the weights that compute the K/V.
    dtype: of the K/V. rotated: keys carry their positions. sharing: layers that store none, with those they use.
    """
    layout = f"{shape.stored_layers}x{shape.num_kv_heads}x{shape.head_dim}"
    state = "rotated" if rotated else "unrotated"
    shared = "".join(f" {layer}:{source}" for layer, source in (sharing or {}).items())
    return f"{shape.name} {fingerprint(module)} {dtype} page={page_size} {layout} {state}{shared}"


def fingerprint(module: nn.Module) -> str:
    """A digest of the config, and of names, shapes, dtypes and evenly spaced values of all weights and buffers."""
    digest = blake2b(_config(module).encode(), digest_size=8)
    for name, weight in (*module.named_parameters(), *module.named_buffers()):
        flat = weight.detach().reshape(-1)
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype};".encode())
        digest.update(flat[:: max(1, len(flat) // SAMPLES)].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _config(module: nn.Module) -> str:
    """What a Hugging Face model computes beyond its weights, such as the base of its rotation; "" for other modules."""
    config: Any = getattr(module, "config", None)
    if config is None:
        return ""
    known = {key: value for key, value in config.to_dict().items() if key not in _NAMES}
    return json.dumps(known, sort_keys=True, default=str)
