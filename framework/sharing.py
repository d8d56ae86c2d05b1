"""Layers that share K/V, from the choice of a compression to a backend's shape."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .execution.contract import ModelShape
from .execution.model_knobs import HfModel, ModelKnobs, RandomModel
from .policy import Compression, checked_sharing
from .progress import WorkProgress

if TYPE_CHECKING:
    from .execution.models import LoadedModel

log = logging.getLogger(__name__)


def check_layers(compression: Compression, shape: ModelShape | None, model: ModelKnobs | None) -> None:
    """Ask for the layers that share, as far as the number of layers is known before a model is loaded.

    Raises
    ------
    ValueError
        If the model has no such layers.
    """
    layers = shape.num_layers if shape is not None else None if model is None else _layers(model)
    if compression.shares and layers is not None:
        with naming(compression):
            checked_sharing(compression.sharing(layers), layers)


def _layers(model: ModelKnobs) -> int | None:
    if isinstance(model, RandomModel):
        return model.num_layers
    config = Path(model.path or "").expanduser() / "config.json"
    if isinstance(model, HfModel) and not config.is_file():
        return None
    known = json.loads(config.read_text(encoding="utf-8"))
    layers = known.get("num_hidden_layers") if isinstance(known, dict) else None
    return layers if isinstance(layers, int) else None


@contextmanager
def naming(compression: Compression) -> Iterator[None]:
    """Within it, what a compression refuses begins with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"compression={compression.name}: {error}") from error


def native(shape: ModelShape) -> ModelShape:
    """``shape`` with the K/V of all layers."""
    return replace(shape, kv_layers=())


def shared_shape(shape: ModelShape, sharing: Mapping[int, int]) -> ModelShape:
    """``shape`` without the K/V of the layers in ``sharing``."""
    own = tuple(layer for layer in range(shape.num_layers) if layer not in sharing)
    return replace(shape, kv_layers=own if sharing else ())


def simulated_sharing(compression: Compression, shape: ModelShape) -> dict[int, int]:
    """The layers of a model of ``shape`` that share, where none is loaded."""
    with naming(compression):
        return checked_sharing(compression.sharing(shape.num_layers), shape.num_layers)


def find_sharing(compression: Compression, model: LoadedModel) -> dict[int, int]:
    """The layers of ``model`` that share; if they are searched for, with a bar of the passes that takes.

    Raises
    ------
    ValueError
        If the model has no such layers.
    """
    if not compression.shares:
        return {}
    from .execution.attention import layer_windows
    from .execution.layer_probe import TorchLayerProbe
    from .execution.sharing import check_sharing

    layers = model.shape.num_layers
    with naming(compression), WorkProgress(f"compression={compression.name}: layers that can share") as progress:
        wanted = checked_sharing(compression.sharing(layers), layers)
        found = compression.sharing(layers, TorchLayerProbe(model, progress.advance))
        found = check_sharing(found, layer_windows(model.module))
    if len(found) < len(wanted):
        said = f"{len(found)} of the {len(wanted)} layers asked for can use the K/V of an earlier one"
        log.warning("compression=%s: %s: %s", compression.name, said, found or "none")
    return found
