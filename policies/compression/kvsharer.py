"""Some layers use the K/V of an earlier layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...framework.policy import Compression, LayerProbe, checked_sharing, register, require_at_least
from .kvsharer_search import Ids, find_sharing

OFFICIAL_SHARE = 8  # the official code lets 4 of 32 layers share


@register("compression", "kvsharer")
@dataclass
class KVSharer(Compression):
    """Yang et al., "KVSharer: Efficient Inference via Layer-Wise Dissimilar KV Cache Sharing", arXiv 2410.18517;
    official code ``test_llama.ipynb`` and its ``DynamicDictCache``.

    A layer of the map neither computes nor stores K/V: its queries attend to those of an earlier layer (rotated by that
    layer's own positions, which are the same). A page holds the other layers only, so that a token takes fewer bytes on
    every tier and every link. Contexts are shared by prefix as ever: no token is changed or let go of.

    ``layer_map`` gives the map, later layer: earlier layer. Else ``shared_layers`` of them are searched for, on the
    loaded model, before anything is served: pairs of layers in the order of the Euclidean distance of their K/V, the
    mean over ``sequences`` calibration sequences of ``tokens`` tokens, greatest first (mean of the distance of keys and
    that of values); each is kept if the cosine similarity of the last hidden states with those of the model as it is,
    the mean over all tokens, stays above ``similarity``. With fewer such pairs fewer layers share. ``shared_layers``
    null: an eighth of the layers, at least one. Calibration tokens are the first of the file ``text``, or, if that is
    null, drawn evenly from the vocabulary by ``seed``.

    Defaults: 30 sequences of 64 tokens, threshold 0.5, as in the official code, which shares 4 of 32 layers.

    Deviations: calibration on given or random tokens (official: lines of Wikipedia); only layers that look back equally
    far share. As in the official code at run time, a layer whose pair points to one that shares itself uses what that
    one uses. In a simulation, which has no K/V to compare, the last ``shared_layers`` layers share.
    """

    shared_layers: int | None = None
    layer_map: Any = None
    similarity: float = 0.5
    sequences: int = 30
    tokens: int = 64
    text: str | None = None
    seed: int = 0

    lossless: ClassVar[bool] = False
    packs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.layer_map is not None:
            if not isinstance(self.layer_map, Mapping):
                raise ValueError(f"layer_map is {self.layer_map!r}; it must be null or later layer: earlier layer, ...")
            if self.shared_layers is not None:
                raise ValueError(f"shared_layers is {self.shared_layers} and layer_map is given; one must be null")
            self.layer_map = checked_sharing(self.layer_map)
        if self.shared_layers is not None:
            require_at_least(self, 0, "shared_layers")
        require_at_least(self, 1, "sequences", "tokens")
        require_at_least(self, 0, "seed")
        if not -1 <= self.similarity <= 1:
            raise ValueError(f"similarity is {self.similarity}; it must be from -1 to 1")
        if self.text is not None and not Path(self.text).expanduser().is_file():
            raise ValueError(f"text is {self.text!r}; there is no such file")

    @property
    def shares(self) -> bool:
        return bool(self.layer_map) if self.layer_map is not None else self.shared_layers != 0

    def sharing(self, num_layers: int, probe: LayerProbe | None = None) -> Mapping[int, int]:
        if self.layer_map is not None:
            return checked_sharing(self.layer_map, num_layers)
        wanted = self._wanted(num_layers)
        if probe is None or not wanted:
            return {num_layers - 1 - i: num_layers - 1 - wanted for i in range(wanted)}
        return find_sharing(probe, self._calibration(probe), wanted, self.similarity)

    def bytes_per_token(self, native_bytes: int, number_bytes: int = 2) -> float:
        """Nothing is packed."""
        return native_bytes

    def _wanted(self, num_layers: int) -> int:
        if self.shared_layers is None:
            return min(max(1, num_layers // OFFICIAL_SHARE), num_layers - 1)
        if self.shared_layers >= num_layers:
            raise ValueError(
                f"shared_layers is {self.shared_layers}; of a model of {num_layers} layers at most {num_layers - 1} "
                "can use the K/V of another"
            )
        return self.shared_layers

    def _calibration(self, probe: LayerProbe) -> Ids:
        """int64 [sequences, tokens]."""
        count = self.sequences * self.tokens
        if self.text is None:
            drawn = np.random.default_rng(self.seed).integers(0, probe.vocab_size, count)
            return drawn.reshape(self.sequences, self.tokens)
        ids = probe.encode(Path(self.text).expanduser().read_text(encoding="utf-8"))
        if len(ids) < count:
            raise ValueError(
                f"text {self.text!r} has {len(ids)} tokens; sequences x tokens are {self.sequences} x {self.tokens}"
            )
        return np.array(ids[:count], np.int64).reshape(self.sequences, self.tokens)
