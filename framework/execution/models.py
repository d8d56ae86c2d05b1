"""Loading a causal language model whose attention reads the paged cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from . import attention
from .contract import ModelShape
from .model_knobs import RandomModel, model_knobs
from .tokenizers import HfTokenizer, load_tokenizer, quiet

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_ONE_MASK = {"full_attention", "sliding_attention"}  # what an attention call says of its mask
_NO_INTERFACE = "model {!r} does not use transformers' attention interface, which the paged cache needs"
_SHIFTING_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device, in eval mode, with the paged attention set.

    ``tokenizer`` is None for random weights and for a directory without one. ``eos_token_ids``: what ends a reply; may
    be empty. ``module`` is shared: executors do not modify it.
    """

    shape: ModelShape
    module: nn.Module
    tokenizer: HfTokenizer | None = None
    eos_token_ids: tuple[int, ...] = ()


def load_model(knobs: Mapping[str, Any], device: str | torch.device = "cpu", seed: int = 0) -> LoadedModel:
    """Load or make the model that ``conf/model`` describes.

    Parameters
    ----------
    knobs: ``name``, ``kind`` and the fields of :class:`RandomModel`, :class:`HfModel` or :class:`ShippedModel`.
    device: where the weights go.
    seed: of random weights; the same seed gives the same weights on the same kind of device.

    Raises
    ------
    ValueError
        In one line: a bad knob, a path without weights, an architecture that transformers does not know or that cannot
        run on the paged cache.
    """
    chosen = model_knobs(knobs)
    attention.register()
    device = _device(device)
    if isinstance(chosen, RandomModel):
        module = _random(chosen, device, seed)
        label, tokenizer = str(knobs.get("name", chosen.architecture)), None
    else:
        path = _checked_path(chosen.path)
        module = _pretrained(path, chosen.dtype, device)
        label, tokenizer = Path(path).name, load_tokenizer(path, _eos(module))
    module.eval().requires_grad_(False)
    return LoadedModel(_shape(label, module), module, tokenizer, _eos(module))


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"backend.device is {str(device)!r}, which torch cannot use: {_first_line(error)}") from error
    return found


# --- random weights -----------------------------------------------------------------------------------------------


def _random(knobs: RandomModel, device: torch.device, seed: int) -> PreTrainedModel:
    config = architecture_config(knobs)
    _check_config(config)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        module = _refused(
            lambda: AutoModelForCausalLM.from_config(
                config, attn_implementation=attention.INTERFACE, dtype=getattr(torch, knobs.dtype)
            ),
            knobs.architecture,
        )
        _scale_weights(module)
    return module


def architecture_config(knobs: RandomModel) -> PreTrainedConfig:
    """The architecture's own config with the sizes of ``knobs``.

    Raises
    ------
    ValueError
        If transformers does not know the architecture, or the architecture a key of ``knobs.config``.
    """
    sizes = {
        "vocab_size": knobs.vocab_size,
        "hidden_size": knobs.hidden_size,
        "intermediate_size": knobs.intermediate_size,
        "num_hidden_layers": knobs.num_layers,
        "num_attention_heads": knobs.num_heads,
        "num_key_value_heads": knobs.num_kv_heads or knobs.num_heads,
        "head_dim": knobs.head_dim or knobs.hidden_size // knobs.num_heads,
        "max_position_embeddings": knobs.max_positions,
        "tie_word_embeddings": knobs.tied_embeddings,
    }
    try:
        known = AutoConfig.for_model(knobs.architecture)
    except ValueError as error:
        raise ValueError(f"model.architecture is {knobs.architecture!r}, which transformers does not know") from error
    if not hasattr(known, "intermediate_size") and hasattr(known, "ffn_dim"):  # OPT's names
        sizes |= {"ffn_dim": sizes["intermediate_size"], "word_embed_proj_dim": knobs.hidden_size}
    sizes = {key: value for key, value in sizes.items() if not _fixed(known, key)}  # Falcon's head_dim
    for key in knobs.config:
        if not hasattr(known, key):
            raise ValueError(f"model.config has {key!r}, which {type(known).__name__} does not know")
    # A token id beyond the vocabulary would fail in the embedding's padding row.
    special = {key: None for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return AutoConfig.for_model(knobs.architecture, **(special | sizes | knobs.config))


def _fixed(config: PreTrainedConfig, key: str) -> bool:
    """True if the config computes ``key`` and takes no value."""
    found = getattr(type(config), key, None)
    return isinstance(found, property) and found.fset is None


@torch.no_grad()
def _scale_weights(module: nn.Module) -> None:
    """Draw the matrices anew so that activations keep their size: the default init makes attention flat and replies
    constant, and a wrong page would go unseen."""
    for child in module.modules():
        if isinstance(child, nn.Embedding):
            child.weight.normal_(0.0, 1.0)
        elif isinstance(child, nn.Linear):
            child.weight.normal_(0.0, child.in_features**-0.5)


# --- saved weights ------------------------------------------------------------------------------------------------


def _pretrained(path: str, dtype: str | None, device: torch.device) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path {path!r} has no readable config: {_first_line(error)}") from error
    _check_config(config)
    with quiet():
        module = _refused(
            lambda: AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                attn_implementation=attention.INTERFACE,
                dtype="auto" if dtype is None else getattr(torch, dtype),
            ),
            path,
        )
    return module.to(device)


def _checked_path(path: str | None) -> str:
    """``path``, expanded if it is local; a local one must hold weights."""
    if not path:
        raise ValueError("model.path must be given: a local directory, or a name on the hub")
    local = Path(path).expanduser()
    if not local.exists():
        if path.startswith(("/", ".", "~")) or path.count("/") > 1:
            raise ValueError(f"model.path {path!r} does not exist")
        return path
    if not local.is_dir():
        raise ValueError(f"model.path {path!r} is a file, expected a directory with config.json and weights")
    if not any(next(local.glob(pattern), None) for pattern in _WEIGHTS):
        raise ValueError(f"model.path {path!r} holds no weights (*.safetensors or pytorch_model*.bin)")
    return os.fspath(local)


# --- what every model must pass -----------------------------------------------------------------------------------


def _check_config(config: PreTrainedConfig) -> None:
    """Refuse what the attention call does not tell us and would be silently wrong."""
    kinds = set(getattr(config, "layer_types", None) or ()) - _ONE_MASK
    if kinds:
        raise ValueError(
            f"model type {config.model_type!r} has {', '.join(sorted(kinds))} layers, expected only attention"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    types = {rope.get("rope_type"), *(v.get("rope_type") for v in rope.values() if isinstance(v, dict))}
    for shifting in types & set(_SHIFTING_ROPE):
        raise ValueError(
            f"model type {config.model_type!r} uses {shifting!r} rotary scaling: its keys depend on the batch's "
            "longest context"
        )


def _refused(load: Callable[[], PreTrainedModel], what: str) -> PreTrainedModel:
    """``load()``, with its failures as one line."""
    try:
        return load()
    except KeyError as error:
        if attention.INTERFACE not in str(error):
            raise
        raise ValueError(_NO_INTERFACE.format(what)) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"model {what!r} cannot be loaded: {_first_line(error)}") from error


@torch.inference_mode()
def _shape(label: str, module: PreTrainedModel) -> ModelShape:
    """Run one token to learn every layer's K/V shape: configs spell it in too many ways."""
    probe = attention.ShapeProbe({})
    ids = torch.zeros((1, 1), dtype=torch.int64, device=module.device)
    module(input_ids=ids, position_ids=ids, use_cache=False, **{attention.CONTEXT: probe})
    config = module.config.get_text_config()
    num_layers = config.num_hidden_layers
    shapes = set(probe.shapes.values())
    if not shapes:
        raise ValueError(_NO_INTERFACE.format(label))
    if len(shapes) != 1 or set(probe.shapes) != set(range(num_layers)):
        raise ValueError(
            f"model {label!r} has {len(shapes)} shapes of K/V in {len(probe.shapes)} attention layers of {num_layers}, "
            "expected one shape in all layers"
        )
    num_heads, num_kv_heads, head_dim = shapes.pop()
    tables = [m.weight.numel() for m in module.modules() if isinstance(m, nn.Embedding)]
    tied = module.get_output_embeddings() is not None and (
        module.get_output_embeddings().weight is module.get_input_embeddings().weight
    )
    return ModelShape(
        name=label,
        num_layers=num_layers,
        hidden_size=config.hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        num_params=sum(p.numel() for p in module.parameters()),
        embedding_params=sum(tables) - (module.get_input_embeddings().weight.numel() if tied else 0),
        dtype_bytes=module.dtype.itemsize,
        max_positions=getattr(config, "max_position_embeddings", None) or 2**31 - 1,
    )


def _eos(module: PreTrainedModel) -> tuple[int, ...]:
    eos = getattr(module.generation_config, "eos_token_id", None)
    return () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
