"""From a plan to the work of an iteration: who gets pages for which tokens."""

from __future__ import annotations

from .admission import Admission
from .batching import StepWork, Work
from .early import EarlyLoads
from .memory import OutOfPages, PageStore
from .memory.owning import own_pages
from .policy import Offer, Plan, RequestView, Share, Tier
from .request import Request
from .running import Running
from .transit import Transit
from .waiting import WaitingQueue


class Boarding:
    """Pins what admitted requests reuse, makes room, and gives everybody their pages."""

    def __init__(
        self,
        store: PageStore,
        admission: Admission,
        early: EarlyLoads,
        transit: Transit,
        waiting: WaitingQueue,
        running: Running,
    ) -> None:
        self._store, self._admission, self._early, self._transit = store, admission, early, transit
        self._waiting, self._running = waiting, running

    def work(self, plan: Plan, now: float) -> StepWork:
        """What ``plan`` asks for, as far as there are pages; requests that it admits are running then, or loading."""
        decoding, shares = self._shares(plan)
        offers = self._lease(shares)
        self._make_room(decoding, shares, offers)
        if decoding:
            self._running.decoding.allocate(0, 1)
        return StepWork(decoding, [item for share in shares if (item := self._accept(share, offers, now)) is not None])

    def _shares(self, plan: Plan) -> tuple[bool, list[Share]]:
        """Whether all that decode together take part, and the shares of the others."""
        decoding = self._running.decoding
        if plan.decodes:
            return len(decoding) > 0, plan.shares
        single = [share for share in plan.shares if _request(share).together is not None]
        if not single:
            return False, plan.shares
        if len(single) == len(decoding):
            return True, [share for share in plan.shares if _request(share).together is None]
        for share in single:
            self._running.part(_request(share))
        return False, plan.shares

    def _lease(self, shares: list[Share]) -> dict[int, Offer]:
        """Pin what the admitted requests reuse, before anything is evicted."""
        offers: dict[int, Offer] = {}
        for share in shares:
            if share.offer is not None:
                request = _request(share)
                offer = self._early.offer(request) or self._admission.accept(request)
                if offer is not None:
                    offers[request.id] = offer
        return offers

    def _make_room(self, decoding: bool, shares: list[Share], offers: dict[int, Offer]) -> None:
        """Evict once for all running requests; they go before those that are being admitted."""
        pages = self._running.decoding.pages if decoding else 0
        pages += sum([self.pages_for(share.request, share.tokens) for share in shares if share.offer is None])
        try:
            self._store.room.make(Tier.DEVICE, pages)
        except OutOfPages:
            for share in shares:
                if share.request.id in offers:
                    self._undo(share, offers.pop(share.request.id))
            self._store.room.make(Tier.DEVICE, pages)

    def pages_for(self, request: RequestView, tokens: int) -> int:
        """New device pages for the next ``tokens`` missing tokens of a running request."""
        assert isinstance(request, Request)
        if request.decoding:
            return int((request.known_tokens - 1) % self._store.page_size == 0)
        return sum([self._store.missing_pages(request.lease, start, stop) for start, stop in request.peek(tokens)])

    def _accept(self, share: Share, offers: dict[int, Offer], now: float) -> Work | None:
        """Give the share its pages; None defers a request that cannot be admitted after all."""
        request = _request(share)
        if share.offer is not None:
            offer = offers.get(request.id)
            return None if offer is None else self._admit(request, share, offer, now)
        self._allocate(request, share.tokens)
        return Work(request, share.tokens, not request.decoding)

    def _admit(self, request: Request, share: Share, offer: Offer, now: float) -> Work | None:
        tokens = 0 if offer.deferred else min(share.tokens, request.missing_tokens)
        loads = [part for part in offer.restore.ranges if part.action == "load"]
        ranges = [*((part.start, part.stop) for part in loads), *(request.peek(tokens) if tokens else ())]
        try:
            self._store.room.make(Tier.DEVICE, self._store.pages_wanted(request.held, ranges))
        except OutOfPages:
            self._undo(share, offer)
            return None
        if not self._early.admit(request):
            for part in loads:
                self._store.load(request.held, part.start, part.stop, part.tier, request.id)
        if request.narrowed is not None:
            own_pages(self._store, request.held)
        if tokens:
            self._allocate(request, tokens)
        self._admission.note(request, offer, now)
        self._waiting.remove(request)
        self._transit.admitted(request, offer, now)
        if offer.deferred:
            return None
        self._running.add(request)
        return Work(request, tokens, prefill=True)

    def _undo(self, share: Share, offer: Offer) -> None:
        self._early.release(_request(share), offer)

    def _allocate(self, request: Request, tokens: int) -> None:
        for start, stop in request.peek(tokens):
            self._store.extend(request.held, start, stop)


def _request(share: Share) -> Request:
    assert isinstance(share.request, Request)
    return share.request
