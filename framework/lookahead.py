"""Fetching waiting requests' history from disk to host, before their turn comes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .execution.transfers import Transfer
from .memory import PageStore
from .memory.lease import Basis
from .memory.run import Run
from .policy import Prefetch, Tier
from .request import Request
from .traffic import Traffic
from .waiting import WaitingQueue


@dataclass(slots=True)
class Fetching:
    """What is under way for one request."""

    request: Request
    started_s: float
    tokens: int = 0
    runs: list[Run] = field(default_factory=list)
    transfers: dict[Transfer, Run] = field(default_factory=dict)


class LookAhead:
    """Starts fetches that ``prefetch`` asks for, and ends them."""

    def __init__(self, store: PageStore, prefetch: Prefetch, queue: WaitingQueue, traffic: Traffic) -> None:
        self._store, self._prefetch, self._queue, self._traffic = store, prefetch, queue, traffic
        self._active = {Tier.HOST, Tier.DISK} <= store.pools.keys()
        self._under_way: dict[int, Fetching] = {}
        # request -> pages that the host had evicted when it was looked up in vain, -1 once a fetch was begun: what the
        # host loses again before the request is served is loaded from disk then, or two requests could fetch for ever
        self._looked: dict[int, int] = {}
        # request for which there was nothing to fetch -> what that rests on
        self._absent: dict[int, Basis] = {}

    @property
    def busy(self) -> bool:
        """Something is being fetched."""
        return bool(self._under_way)

    def start(self, now_s: float) -> None:
        """Begin what is to be fetched now; the moves go into the store's outbox."""
        if not self._active or not len(self._queue):
            return
        host, looked = self._store.pools[Tier.HOST], self._looked
        for wanted in self._prefetch.ahead(self._queue, host):
            number, evicted = wanted.id, host.evicted_pages
            before = looked.get(number)
            if before == evicted or before == -1 or number in self._under_way:
                continue
            looked[number] = evicted
            rests_on = self._absent.get(number)
            if rests_on is not None and rests_on.holds(wanted.conversation):
                continue
            assert isinstance(wanted, Request)
            match = self._store.lookup(wanted.log, wanted.known_tokens, wanted.conversation)
            on_disk = self._store.fetches.wanted_pages(match) * self._store.page_size
            if not on_disk or not self._prefetch.fetches(on_disk):
                self._absent[wanted.id] = match.depends()
                continue
            hasty = self._prefetch.patience_s(on_disk) < float("inf")
            runs = self._store.fetches.start(match, wanted.id, in_pieces=hasty)
            if runs:
                tokens = sum(run.pages for run in runs) * self._store.page_size
                self._looked[wanted.id] = -1
                self._under_way[wanted.id] = Fetching(wanted, now_s, tokens, runs)

    def submitted(self, transfers: list[Transfer]) -> None:
        """``transfers`` were made of the outbox's moves."""
        for transfer in transfers:
            if transfer.move.reason == "fetch":
                fetching = self._under_way[transfer.move.request]
                fetching.transfers[transfer] = fetching.runs.pop(0)

    def ended(self, transfer: Transfer) -> None:
        """A fetch is over. What did not arrive intact is lost on disk too."""
        fetching = self._under_way[transfer.move.request]
        run = fetching.transfers.pop(transfer)
        intact = not transfer.cancelled and not len(transfer.failed)
        self._store.fetches.ended(run, arrived=intact)
        if len(transfer.failed):
            self._store.lose(Tier.DISK, np.asarray(transfer.move.source_slots)[transfer.failed])
        if not fetching.transfers and not fetching.runs:
            del self._under_way[fetching.request.id]

    def served(self, request: Request) -> None:
        """``request`` has left the queue."""
        self._looked.pop(request.id, None)
        self._absent.pop(request.id, None)

    def call_off(self, request: Request, now_s: float) -> bool:
        """The turn of ``request`` has come: what it has waited for long enough and has not begun is called off."""
        fetching = self._under_way.get(request.id)
        if fetching is None or now_s < fetching.started_s + self._prefetch.patience_s(fetching.tokens):
            return False
        self._traffic.cancel(fetching.transfers)
        return True
