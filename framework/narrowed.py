"""Contexts that a token-level policy works on, from the engine's side: whose they are, and whether they are whole."""

from __future__ import annotations

from .execution.contract import Executor, Narrowing
from .footprint import Held, Turn, Window
from .memory import Match, PageStore
from .memory.cutting import forget
from .memory.owning import shrink
from .metrics.records import Narrowed
from .policy import Compression, Stage, TokenTruncation, Truncation
from .request import Request
from .workloads.narrowed import NarrowedLog
from .workloads.tokens import TokenLog


class NarrowedContexts:
    """Keeps the contexts of one engine in slots, if its policies may let go of single tokens or store them packed.

    Parameters
    ----------
    nonce: see ``NarrowedLog``.

    Attributes
    ----------
    active: they may; else nothing here is ever used.
    freed_tokens, freed_pages: slots, and pages of the device, that were let go of so far.
    begun_anew: contexts that were computed again because a page of them was lost.
    anew: waiting requests that this has happened to; the engine takes them off the list.
    """

    def __init__(
        self,
        store: PageStore,
        executor: Executor,
        truncation: Truncation,
        compression: Compression,
        *,
        nonce: int = 0,
    ) -> None:
        self.active = isinstance(truncation, TokenTruncation) or compression.packs
        self.freed_tokens = self.freed_pages = self.begun_anew = 0
        self._store, self._executor, self._nonce = store, executor, nonce
        self.anew: list[Request] = []
        self._begun = 0
        self._resting: dict[int, NarrowedLog] = {}  # stored contexts that nobody runs, by conversation
        if self.active:
            store.pages.lost = []

    def totals(self) -> Narrowed | None:
        """What was done so far; None if there is nothing to do."""
        return Narrowed(self.freed_tokens, self.freed_pages, self.begun_anew) if self.active else None

    # --- logs ---------------------------------------------------------------------------------------------------

    def own(self, log: TokenLog, *, lasting: bool) -> TokenLog:
        """``log`` as its conversation's own, if there is anything to narrow. ``lasting``: later turns continue it."""
        if not self.active:
            return log
        return NarrowedLog(log, self._number(), nonce=self._nonce, lasting=lasting)

    def _number(self) -> int:
        self._begun += 1
        return self._begun

    def rests(self, request: Request, log: NarrowedLog) -> None:
        """``request`` has let go of its pages."""
        if log.lasting and log.stored:
            self._resting[request.conversation] = log

    def sweep(self) -> None:
        """What is left of contexts that have lost a page is of no use: it leaves all tiers."""
        lost = self._store.pages.lost
        while lost:
            conversation = lost.pop()
            if (log := self._resting.pop(conversation, None)) is not None:
                forget(self._store.pages, log.page_keys(self._store.page_size, log.stored), conversation)

    def ended(self, log: TokenLog) -> None:
        """Nobody will continue ``log``."""
        if isinstance(log, NarrowedLog):
            self._executor.forget(log.context)
            log.stored = 0

    def abandon(self, request: Request) -> None:
        """``request`` will not be served to its end: nothing is left of its context."""
        log = request.narrowed
        assert log is not None
        keys = log.page_keys(self._store.page_size, log.stored)
        if request.lease is not None:
            request.let_go(self._store, 0, "nothing")
        forget(self._store.pages, keys, request.conversation)
        self._resting.pop(request.conversation, None)
        self.ended(log)

    def needs(self, request: Request, window: Window) -> Turn:
        """What ``request``, which has just arrived, takes of ``window``."""
        log, output, footprint = request.narrowed, request.target_tokens, window.footprint
        held = Held()
        if log is not None and footprint is not None and not log.fresh:
            held = footprint.resumed(log.stored + log.offset, log.stored)
        return window.turn(held, request.input_tokens - held.slots, output)

    # --- before computing ---------------------------------------------------------------------------------------

    def match(self, request: Request, log: NarrowedLog) -> Match:
        """What is stored of the context: all that it needs, or nothing; then it is begun anew."""
        match = self._store.lookup(log, log.stored, request.conversation)
        if match.blocked or log.fresh or (log.stored and _present(match) == log.stored):
            return match
        self._begin_anew(request, log)
        return self._store.lookup(log, 0, request.conversation)

    def _begin_anew(self, request: Request, log: NarrowedLog) -> None:
        forget(self._store.pages, log.page_keys(self._store.page_size, log.stored), request.conversation)
        self._executor.forget(log.context)
        request.widen(log.offset)
        log.begin(self._number())
        self.begun_anew += 1
        self.anew.append(request)

    def narrowing(self, request: Request, log: NarrowedLog, end: int, *, prefill: bool) -> Narrowing:
        """What the executor has to know of the segment that ends at slot ``end``."""
        log.fresh = False
        self._resting.pop(request.conversation, None)
        resumed = request.generated_tokens > 0 and log.stored > 0
        stage: Stage = "decode" if resumed or not prefill else "chunk" if request.missing else "prompt"
        return Narrowing(log.context, request.conversation, stage, end + log.offset)

    # --- after --------------------------------------------------------------------------------------------------

    def narrow(self, request: Request, log: NarrowedLog, slots: int) -> None:
        """What was computed of ``request`` takes ``slots`` slots now."""
        freed = request.computed_tokens - slots
        self.freed_tokens += freed
        self.freed_pages += shrink(self._store, request.held, slots)
        request.narrow(freed)
        log.offset += freed


def _present(match: Match) -> int:
    """Leading tokens that some tier holds."""
    present = 0
    for span in match.residency.spans:
        if not span.tiers:
            break
        present = span.stop
    return present
