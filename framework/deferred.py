"""Requests whose history is being loaded before they join an iteration."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .execution.transfers import Transfer
from .policy import Tier
from .request import Request


@dataclass(slots=True)
class Deferred:
    """A request and its loads. ``damaged``: disk slots whose pages did not arrive intact."""

    request: Request
    since_s: float
    transfers: set[Transfer] = field(default_factory=set)
    damaged: list[NDArray[np.int32]] = field(default_factory=list)
    failed: bool = False


class DeferredLoads:
    """By request; a request leaves when all its loads have ended."""

    def __init__(self) -> None:
        self._by_request: dict[int, Deferred] = {}

    def __len__(self) -> int:
        return len(self._by_request)

    def __contains__(self, request: int) -> bool:
        return request in self._by_request

    def add(self, request: Request, now_s: float) -> None:
        """``request`` has been admitted; the moves of its loads are in the outbox."""
        self._by_request[request.id] = Deferred(request, now_s)

    def submitted(self, transfer: Transfer) -> None:
        """``transfer`` is one of the loads."""
        self._by_request[transfer.move.request].transfers.add(transfer)

    def owns(self, transfer: Transfer) -> bool:
        """A request here waits for ``transfer``."""
        deferred = self._by_request.get(transfer.move.request)
        return deferred is not None and transfer in deferred.transfers

    def ended(self, transfer: Transfer) -> Deferred | None:
        """A load is over; its request if that was the last."""
        deferred = self._by_request[transfer.move.request]
        deferred.transfers.remove(transfer)
        if len(transfer.failed):
            deferred.failed = True
            if transfer.move.source is Tier.DISK:
                deferred.damaged.append(np.asarray(transfer.move.source_slots)[transfer.failed])
        if deferred.transfers:
            return None
        return self._by_request.pop(transfer.move.request)
