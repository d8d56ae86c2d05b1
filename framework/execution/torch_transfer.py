"""Transfers between real memories, and the gate at which an iteration waits for them layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Condition
from time import perf_counter
from typing import Protocol

from ..policy import Tier
from .transfers import Transfer

GUARD_S = 300.0  # a copy that takes longer than this is a fault, not a wait


class Mark(Protocol):
    """A point in a device's own queue of copies (a CUDA event)."""

    def wait(self) -> None:
        """Make what the calling thread computes next on the device wait for it; does not block."""
        ...


@dataclass(slots=True, eq=False)
class TorchTransfer(Transfer):
    """A transfer that threads can wait for. The queue that made it changes it, holding the lock of ``news``.

    Attributes
    ----------
    news: told when layers arrive and when it ends.
    order: its number among all submitted. urgent: somebody waits for it, or for what waits for it.
    after: transfers that must end before it begins, as long as they have not. followers: those that wait for it.
    arrived: layers of its range that have arrived, or have been queued on a GPU up to their mark.
    marks: one for each layer that has arrived, on a GPU.
    """

    news: Condition = field(default_factory=Condition)
    order: int = 0
    urgent: bool = False
    after: set[TorchTransfer] = field(default_factory=set)
    followers: list[TorchTransfer] = field(default_factory=list)
    arrived: int = 0
    marks: list[Mark] = field(default_factory=list)

    def hurry(self) -> None:
        """It is urgent from now on, and so is all that it waits for. The caller holds the lock of ``news``."""
        stack = [self]
        while stack:
            transfer = stack.pop()
            if not transfer.urgent:
                transfer.urgent = True
                stack.extend(transfer.after)

    def wait(self, layer: int | None = None) -> float:
        """Block until ``layer`` of the pages has arrived, at once if it is not in the move; None: until it has ended.

        Returns the seconds for which the thread was blocked. On a GPU, what comes next on the current stream waits for
        the layer: time that is not counted here.

        Raises
        ------
        TimeoutError
            If nothing happened for minutes.
        """
        waited_s = 0.0
        if not self._there(layer):
            start_s = perf_counter()
            with self.news:
                self.hurry()
                if not self.news.wait_for(lambda: self._there(layer), GUARD_S):
                    raise TimeoutError(f"{self.move.link}: {self.move.pages} pages did not arrive in {GUARD_S:g} s")
            waited_s = perf_counter() - start_s
        if layer is not None and 0 <= (part := layer - self._first_layer) < len(self.marks):
            self.marks[part].wait()
        return waited_s

    @property
    def _first_layer(self) -> int:
        return self.move.layers[0] if self.move.layers else 0

    def _there(self, layer: int | None) -> bool:
        if self.done or layer is None:
            return self.done
        part = layer - self._first_layer
        outside = self.move.layers is not None and not 0 <= part < self.move.layers[1]
        return outside or part < self.arrived


class LayerGate:
    """What one iteration waits for: ``waits`` before its first layer, layer i of ``loads`` before layer i's attention.

    ``stall_s``: for how long it kept the computing thread.
    """

    def __init__(self, waits: Sequence[Transfer] = (), loads: Sequence[Transfer] = ()) -> None:
        self._waits = waits
        self._loads = loads
        self.stall_s = 0.0

    def enter(self) -> None:
        """Wait until all of ``waits`` have ended.

        Raises
        ------
        RuntimeError
            If pages that were to come from the host did not.
        """
        for transfer in self._waits:
            self._wait(transfer, None)

    def attend(self, layer: int) -> None:
        """Wait until all of ``loads`` have brought ``layer``.

        Raises
        ------
        RuntimeError
            If one of them failed or was called off: better no answer than a wrong one.
        """
        for transfer in self._loads:
            self._wait(transfer, layer)
            if transfer.cancelled or transfer.failed.size:
                raise RuntimeError(f"{transfer.move.link}: pages that are computed with did not arrive")

    def _wait(self, transfer: Transfer, layer: int | None) -> None:
        if isinstance(transfer, TorchTransfer):
            self.stall_s += transfer.wait(layer)
        elif not transfer.done:
            raise TypeError(f"{type(transfer).__name__} was not made by the links of the torch backend")
        if transfer.failed.size and (transfer.move.source, transfer.move.target) == (Tier.HOST, Tier.DEVICE):
            raise RuntimeError(f"{transfer.move.link}: pages that are computed with did not arrive")
