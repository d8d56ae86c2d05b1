"""The narrower families: write-back, truncation, compression, routing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from .base import Policy, Tier
from .codecs import Codec
from .layers import LayerProbe
from .views import RequestView, RunView, TierView


class Writeback(Policy, ABC):
    """When pages are copied down, and what becomes of pages that must leave a tier.

    The next tier down is the only target. ``yields``: copies down wait while copies up are running in the other
    direction of the link. ``keeps_device``: False where the device holds running requests only: at the end of a turn
    pages are copied down and leave it. ``buffer_tokens``: how many tokens may be on their way down while the next
    iteration runs; beyond that it waits (None: no limit).
    """

    family: ClassVar[str] = "writeback"
    yields: bool = False
    keeps_device: bool = True

    @property
    def buffer_tokens(self) -> int | None:
        """Tokens that may be on their way down while the next iteration runs."""
        return None

    @abstractmethod
    def on_evict(self, run: RunView, tier: Tier) -> bool:
        """Whether the pages of ``run``, which must leave ``tier`` and have no copy below, are copied down (True) or
        dropped (False). Asked only where there is a tier below."""

    def eager(self, run: RunView) -> bool:
        """Whether ``run``, whose pages were just computed or used again on the device, is copied down at once."""
        return False

    def ahead(self, view: TierView) -> int:
        """How many pages of ``view``'s tier are to be copied down now although nothing must leave; the tier's eviction
        policy names them, and they become spare. Asked once per iteration and tier; O(1)."""
        return 0


class Truncation(Policy, ABC):
    """What happens when a context outgrows the model's window: which tokens survive, at which positions.

    ``keeps``: the stored K/V of the survivors stay in use (they carry what they saw of the dropped tokens, and their
    positions move); False: the shortened context is computed again.
    """

    family: ClassVar[str] = "truncation"

    @property
    def keeps(self) -> bool:
        """Stored K/V of surviving tokens stay in use."""
        return False

    @abstractmethod
    def first_kept(self, history_tokens: int, needed_tokens: int, limit: int) -> int:
        """How many of the oldest tokens are dropped when a turn arrives that grows its context to ``needed_tokens``,
        prompt and reply included, ``history_tokens`` of them old, and the window holds ``limit``. 0 keeps all; at most
        ``history_tokens``."""


class Compression(Policy, ABC):
    """In what form surviving K/V are stored: the oldest tokens of a context packed, the newest as the model made them,
    and of which layers.

    Packed bytes live in front pages of the context's own, new tokens in ordinary pages behind. What is packed is said
    twice: in numbers, which a simulation goes by, and by a :class:`Codec`, which works on tensors.

    ``packs``: False where no token is ever packed: contexts are then stored, shared and restored like those of
    ``compression=none``, in pages that hold only the layers that store K/V of their own (:meth:`sharing`).
    """

    family: ClassVar[str] = "compression"
    packs: ClassVar[bool] = True

    @property
    def shares(self) -> bool:
        """Some layers may store no K/V of their own."""
        return False

    def sharing(self, num_layers: int, probe: LayerProbe | None = None) -> Mapping[int, int]:
        """Layers of a model of ``num_layers`` that compute and store no K/V, each with the earlier one whose K/V it
        attends to.

        ``probe``: the loaded model, where the choice is made on it. None: nothing is loaded, and a simulation takes of
        the answer only which layers store; it may have more pairs than the model turns out to bear.

        Raises
        ------
        ValueError
            If that cannot be done to such a model.
        """
        return {}

    @abstractmethod
    def bytes_per_token(self, native_bytes: int, number_bytes: int = 2) -> float:
        """Stored bytes for one packed token, scales and the like included, whose native K/V take ``native_bytes``, at
        ``number_bytes`` for each number."""

    def packed_tokens(self, cached_tokens: int) -> int:
        """How many of ``cached_tokens`` tokens, the oldest ones, are stored packed; the others are as the model made
        them."""
        return 0

    def codec(self, head_dim: int) -> Codec | None:
        """What packs K/V of ``head_dim`` numbers; None: all stay native.

        Raises
        ------
        ValueError
            If it does not work on K/V of that width.
        """
        return None


class Routing(Policy, ABC):
    """Which instance serves a request."""

    family: ClassVar[str] = "routing"

    @abstractmethod
    def route(self, request: RequestView, instances: int) -> int:
        """Index of the serving instance, 0 .. ``instances`` - 1."""
