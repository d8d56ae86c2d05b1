"""The packed form of a compression: what the executor asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Due:
    """How many of a plane's native tokens, oldest first, have ``keys`` and ``values`` rounded to their packed form."""

    keys: int = 0
    values: int = 0


class Codec(ABC):
    """Packs the oldest tokens of a context; the newest stay *native*, in ordinary pages.

    The form is ``parts``: named tensors of any dtype, each [L, G, ...] (layers, KV heads), whose bytes the executor
    keeps in the context's own front pages, layer after layer, swaps and counts; nothing else is remembered of a
    context. What depends on the layer or the context belongs into the parts: the channels that are left (pruning), how
    many tokens a merged one stands for, a low-rank state. Hooks that such forms need beside keys and values are to be
    added here, with a default that leaves the other forms as they are. Layers that share K/V are no packed form: see
    ``Compression.sharing``.
    """

    @abstractmethod
    def due(self, native: int) -> Due:
        """What is rounded once a prompt has ended or a token was decoded, of ``native`` tokens behind the packed ones.

        Tokens are rounded where they are until they are packed: by then nothing changes in what they say."""

    @abstractmethod
    def packable(self, native: int) -> int:
        """How many of ``native`` tokens, the oldest, can be packed; at most what is :meth:`due`."""

    @abstractmethod
    def round_keys(self, keys: Tensor) -> Tensor:
        """[..., tokens, head_dim], in the dtype of the cache: what the packed form would say."""

    @abstractmethod
    def round_values(self, values: Tensor) -> Tensor:
        """As :meth:`round_keys`."""

    @abstractmethod
    def pack(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        """The parts of keys and values [L, G, tokens, head_dim], in the dtype of the cache; any number of tokens."""

    @abstractmethod
    def join(self, first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parts of the tokens of ``first`` and then those of ``second``; no token is rounded again."""

    @abstractmethod
    def take(self, parts: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
        """The parts of some tokens, int64 [L, G, m], -1: any; no token is rounded again."""

    @abstractmethod
    def keys(self, parts: dict[str, Tensor]) -> Tensor:
        """[..., tokens, head_dim] in the dtype of the cache, of parts [..., any]."""

    @abstractmethod
    def values(self, parts: dict[str, Tensor]) -> Tensor:
        """As :meth:`keys`."""
