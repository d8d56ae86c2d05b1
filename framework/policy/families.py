"""The narrower families: write-back, truncation, compression, routing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from .base import Policy, Tier
from .views import RequestView, RunView


class Writeback(Policy, ABC):
    """When pages are copied down before they must leave the device."""

    family: ClassVar[str] = "writeback"

    @abstractmethod
    def on_evict(self, run: RunView) -> Tier | None:
        """Where a run that leaves the device goes; None drops it."""


class Truncation(Policy, ABC):
    """What happens when a context outgrows its budget: which tokens survive, at which positions."""

    family: ClassVar[str] = "truncation"

    @abstractmethod
    def first_kept(self, tokens: int, limit: int) -> int:
        """Index of the first history token that is kept when ``tokens`` must fit into ``limit``; 0 keeps all."""


class Compression(Policy, ABC):
    """In what form surviving K/V are stored."""

    family: ClassVar[str] = "compression"

    @abstractmethod
    def bytes_per_token(self, native_bytes: int) -> float:
        """Stored bytes for one token whose native K/V take ``native_bytes``."""


class Routing(Policy, ABC):
    """Which instance serves a request."""

    family: ClassVar[str] = "routing"

    @abstractmethod
    def route(self, request: RequestView, instances: int) -> int:
        """Index of the serving instance, 0 .. ``instances`` - 1."""
