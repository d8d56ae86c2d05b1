"""Loads that begin before their request's iteration: the read buffer of layer-wise pre-loading."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .admission import Admission, used_tokens
from .memory import OutOfPages, PageStore
from .policy import Costs, Offer, Prefetch, Tier
from .request import Request
from .transit import Transit
from .waiting import WaitingQueue

AHEAD = 4  # waiting requests whose loads may begin early


@dataclass(slots=True)
class Early:
    """A waiting request that has its pages already; the first ``layers`` layers of its history are on their way."""

    request: Request
    offer: Offer
    layers: int


class EarlyLoads:
    """Gives the first requests of the queue device pages and begins to load as many layers as ``prefetch`` asks for.

    ``layers``: of a page. The leases are given up as soon as somebody else needs the pages.
    """

    def __init__(
        self,
        store: PageStore,
        admission: Admission,
        prefetch: Prefetch,
        queue: WaitingQueue,
        transit: Transit,
        costs: Costs,
        layers: int,
    ) -> None:
        self._store, self._admission, self._prefetch, self._transit = store, admission, prefetch, transit
        self._queue, self._costs, self._layers = queue, costs, layers
        self._early: dict[int, Early] = {}
        asks = type(prefetch).early_layers is not Prefetch.early_layers
        self._active = asks and Tier.HOST in store.pools

    def __len__(self) -> int:
        return len(self._early)

    def begin(self) -> None:
        """Begin what can begin now, in the order of the queue; the moves go into the store's outbox."""
        if not self._active:
            return
        for request in self._queue.head(AHEAD):
            if request.id not in self._early and not self._begin(request):
                return

    def _begin(self, request: Request) -> bool:
        offer = self._admission.offer(request)
        loads = [part for part in offer.restore.ranges if part.action == "load"]
        if offer.blocked or offer.deferred or not loads or offer.restore.loading != "layers":
            return False
        if offer.pages + offer.pinned_pages > self._store.available():
            return False
        layers = self._wanted(offer)
        if not layers or self._admission.accept(request) is None:
            return False
        try:
            self._store.room.make(Tier.DEVICE, offer.load_pages)
        except OutOfPages:
            self.release(request, offer)
            return False
        for part in loads:
            self._store.load(request.held, part.start, part.stop, part.tier, request.id, layers=(0, layers))
        self._early[request.id] = Early(request, replace(offer, load_pages=0, pinned_pages=0), layers)
        return True

    def _wanted(self, offer: Offer) -> int:
        tokens = sum(part.stop - part.start for part in offer.restore.ranges if part.action == "load")
        load_s = self._costs.load_s(tokens, Tier.HOST)
        compute_s = sum(self._costs.recompute_s(start, stop) for start, stop in offer.missing)
        return min(self._prefetch.early_layers(self._layers, load_s, compute_s), self._layers)

    def offer(self, request: Request) -> Offer | None:
        """What admitting ``request`` still takes, if its loads have begun."""
        early = self._early.get(request.id)
        return early.offer if early is not None else None

    def admit(self, request: Request) -> bool:
        """``request`` joins an iteration: load its other layers; False if its loads had not begun."""
        early = self._early.pop(request.id, None)
        if early is None:
            return False
        self._store.load_rest(request.held, early.layers, self._layers, request.id)
        return True

    def give_up(self) -> bool:
        """Release all leases; False if there were none."""
        given_up = list(self._early.values())
        for early in given_up:
            self.release(early.request, early.offer)
        return bool(given_up)

    def release(self, request: Request, offer: Offer) -> None:
        """``request`` cannot be admitted after all: its lease goes back, whether its loads have begun or not."""
        self._early.pop(request.id, None)
        self._transit.released(request)
        request.let_go(self._store, used_tokens(offer.restore), self._prefetch.reuses)
