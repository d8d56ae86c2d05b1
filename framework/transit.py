"""What is on its way between tiers for one engine: which iteration or request waits for which transfer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from .deferred import Deferred, DeferredLoads
from .execution.contract import Batch
from .execution.transfers import Links, Transfer
from .lookahead import LookAhead
from .memory import PageStore
from .metrics.records import Recorder
from .policy import Offer, Prefetch, Tier, Writeback
from .request import Request
from .traffic import Traffic
from .waiting import WaitingQueue


class Transit:
    """Hands the store's moves to ``links`` and the transfers to those who wait for them.

    Attributes
    ----------
    faults: pages that did not arrive intact, by link.
    """

    def __init__(
        self,
        store: PageStore,
        links: Links | None,
        recorder: Recorder,
        queue: WaitingQueue,
        prefetch: Prefetch,
        writeback: Writeback,
    ) -> None:
        self.faults: Counter[str] = Counter()
        self._store = store
        self._writeback = writeback
        self._traffic = Traffic(store, links, recorder)
        self._ahead = LookAhead(store, prefetch, queue, self._traffic)
        self._deferred = DeferredLoads()
        self._blocking: set[int] = set()  # requests whose loads come before the first layer of their iteration
        self._loads: dict[int, list[Transfer]] = {}  # of requests that have not joined an iteration yet
        self._joining: list[int] = []  # requests that join the iteration which is being built

    # --- before an iteration ------------------------------------------------------------------------------------

    def look_ahead(self, now_s: float) -> None:
        """Begin to fetch what waiting requests will need."""
        self._ahead.start(now_s)

    def call_off(self, request: Request) -> bool:
        """The turn of ``request`` has come, and pages it needs are on their way: True if what has not begun is called
        off now, because it has waited long enough."""
        if not self._ahead.busy:
            return False
        now_s = self._store.pages.moment.now_s
        self.submit(now_s)
        return self._ahead.call_off(request, now_s)

    def admitted(self, request: Request, offer: Offer, now_s: float) -> None:
        """``request`` has left the queue; the moves of its loads are in the outbox."""
        self._ahead.served(request)
        if offer.deferred:
            self._deferred.add(request, now_s)
            return
        self._joining.append(request.id)
        if offer.restore.loading == "blocking":
            self._blocking.add(request.id)

    def released(self, request: Request) -> None:
        """``request`` gave up its pages before it joined an iteration: nobody waits for its loads."""
        self.submit(self._store.pages.moment.now_s)
        self._loads.pop(request.id, None)

    def horizon(self, arrival_s: Callable[[], float], now_s: float) -> float:
        """When a stretch of equal steps must end: something arrives, or a transfer ends that somebody waits for."""
        self.submit(now_s)
        awaited = len(self._deferred) > 0 or self._ahead.busy
        return min(arrival_s(), self._traffic.next_end_s(now_s)) if awaited else arrival_s()

    def attach(self, batch: Batch, now_s: float) -> frozenset[int]:
        """Submit all moves; let ``batch`` wait for its loads, and for copies of pages that it writes to.

        Returns the requests that it has loads of.
        """
        batch.start_s = now_s
        self.submit(now_s)
        batch.waits = self._traffic.blocking(self._store.device.to_be_computed())
        joined = frozenset(request for request in self._joining if request in self._loads)
        for request in self._joining:
            (batch.waits if request in self._blocking else batch.loads).extend(self._loads.pop(request, ()))
        self._joining.clear()
        self._blocking.clear()
        if (buffer := self._writeback.buffer_tokens) is not None:
            batch.waits += self._traffic.excess_down(buffer // self._store.page_size)
        return joined

    def submit(self, now_s: float) -> None:
        """Submit all moves so far."""
        transfers = self._traffic.flush(now_s)
        for transfer in transfers:
            if transfer.move.target is Tier.DEVICE:
                if transfer.move.request in self._deferred:
                    self._deferred.submitted(transfer)
                else:
                    self._loads.setdefault(transfer.move.request, []).append(transfer)
        self._ahead.submitted(transfers)

    # --- after --------------------------------------------------------------------------------------------------

    def settle(self, now_s: float) -> list[Deferred]:
        """Take notice of the transfers that have ended; the requests whose loads have."""
        joined: list[Deferred] = []
        for transfer in self._traffic.ended(now_s):
            move = transfer.move
            if len(transfer.failed):
                self.faults[move.link] += len(transfer.failed)
                self._store.room.closed = frozenset(self._traffic.closed())
            if move.reason == "fetch":
                self._ahead.ended(transfer)
            elif self._deferred.owns(transfer):
                if (deferred := self._deferred.ended(transfer)) is not None:
                    joined.append(deferred)
            elif len(transfer.failed):
                self._store.lose(move.target, move.target_slots[transfer.failed], move.keys[transfer.failed])
        return joined

    @property
    def loading(self) -> int:
        """Requests that wait for their loads before they join an iteration."""
        return len(self._deferred)

    def idle_until(self, now_s: float, arrival_s: float) -> float | None:
        """Nothing is computed: submit all moves and tell when a transfer ends next; None if nothing is on its way.

        On a real clock it waits for that, but not beyond ``arrival_s``, when something else is to be done.
        """
        self.submit(now_s)
        if not self._traffic.busy:
            return None
        self._traffic.wait(max(0.0, arrival_s - now_s))
        return self._traffic.next_end_s(now_s)
