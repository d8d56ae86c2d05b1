"""A request on its way through the engine."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .memory import Keep, Lease, PageStore
from .metrics.records import RequestRecord
from .metrics.token_times import Ticks
from .workloads.narrowed import NarrowedLog
from .workloads.tokens import TokenLog


@dataclass(slots=True)
class Missing:
    """Tokens ``start`` .. ``stop`` to compute; ``write`` False if their K/V are stored and only queries are needed."""

    start: int
    stop: int
    write: bool = True


class Together(Protocol):
    """Requests that get their tokens at the same time: ``ticks`` each since the run began, at ``times``."""

    ticks: int
    times: Ticks


@dataclass(slots=True, eq=False)
class Request:
    """One turn being served; a ``RequestView`` for policies, which must not look at ``target_tokens`` or ``forced``.

    ``log`` is the context, extended as tokens are generated. ``missing`` is the ordered set of ranges without K/V;
    while ``decoding`` it is the newest token alone, which is not written out. ``lease`` is None while the request
    waits. ``admission`` numbers admissions in their order.

    While the request decodes ``together`` with others, what it gets is counted there; it is written to ``log`` and
    ``record`` when it leaves them, or earlier by :meth:`settle`.
    """

    id: int
    conversation: int
    turn: int
    arrival_s: float
    order: int
    input_tokens: int
    target_tokens: int
    log: TokenLog
    record: RequestRecord
    forced: NDArray[np.int32] | None = None
    missing: deque[Missing] = field(default_factory=deque)
    missing_tokens: int = 0
    decoding: bool = False
    lease: Lease | None = None
    computed_before: int = 0
    counted: bool = False
    recompute_left: int = 0
    admission: int = -1
    together: Together | None = None
    _generated: int = 0
    _since: int = 0  # the tick from which on tokens are counted together
    _first: int = 0  # the stretch with which that began

    @property
    def generated_tokens(self) -> int:
        """Output tokens so far."""
        together = self.together
        return self._generated if together is None else self._generated + together.ticks - self._since

    @property
    def known_tokens(self) -> int:
        """Tokens of the context so far."""
        together = self.together
        known = self.input_tokens + self._generated
        return known if together is None else known + together.ticks - self._since

    @property
    def computed_tokens(self) -> int:
        """Length of the leading part of the context that has K/V."""
        return self.missing[0].start if self.missing else self.known_tokens - self.decoding

    @property
    def remaining_tokens(self) -> int:
        """Tokens still to generate. The future: not for policies."""
        return self.target_tokens - self.generated_tokens

    @property
    def held(self) -> Lease:
        """The lease of a running request."""
        assert self.lease is not None, "the request is not running"
        return self.lease

    @property
    def narrowed(self) -> NarrowedLog | None:
        """The context in slots, where a token-level policy decides what stays of it."""
        return self.log if isinstance(self.log, NarrowedLog) else None

    def narrow(self, slots: int) -> None:
        """``slots`` of what was computed are no more; what is missing moves up."""
        self.input_tokens -= slots
        for part in self.missing:
            part.start -= slots
            part.stop -= slots

    def widen(self, slots: int) -> None:
        """All of the context is to be computed again, the ``slots`` that were let go of too. Not while it runs."""
        self.input_tokens += slots
        self.computed_before += slots if self.computed_before else 0
        if not self.counted:
            self.record.dropped = 0
        self.expect([Missing(0, self.known_tokens)])

    def let_go(self, store: PageStore, computed_tokens: int, keep: Keep) -> None:
        """Give the lease back; ``keep`` of the leading ``computed_tokens`` tokens stays stored. Of a narrowed context
        that is all of them or nothing."""
        if (log := self.narrowed) is not None:
            keep = "nothing" if keep == "nothing" else "tokens"
            log.stored = 0 if keep == "nothing" else computed_tokens
        store.release(self.held, self.log, computed_tokens, keep)
        self.lease = None
        self.expect([Missing(0, self.known_tokens)])

    def take(self, tokens: int) -> list[Missing]:
        """The first ``tokens`` missing tokens, as ranges; they count as computed from now on."""
        if self.decoding:
            start = self.take_newest()
            return [Missing(start, start + 1)]
        self.missing_tokens -= tokens
        taken: list[Missing] = []
        while tokens:
            first = self.missing[0]
            stop = min(first.stop, first.start + tokens)
            taken.append(Missing(first.start, stop, first.write))
            tokens -= stop - first.start
            if stop == first.stop:
                self.missing.popleft()
            else:
                first.start = stop
        return taken

    def take_newest(self) -> int:
        """While decoding: the newest token counts as computed from now on; its position."""
        self.decoding = False
        self.missing_tokens = 0
        return self.known_tokens - 1

    def peek(self, tokens: int) -> list[tuple[int, int]]:
        """The first ``tokens`` missing tokens, as (start, stop) ranges."""
        if self.decoding:
            return [(self.known_tokens - 1, self.known_tokens)]
        ranges: list[tuple[int, int]] = []
        for part in self.missing:
            stop = min(part.stop, part.start + tokens)
            ranges.append((part.start, stop))
            tokens -= stop - part.start
            if not tokens:
                break
        return ranges

    def generated(self, tokens: int, chosen: int = -1) -> None:
        """``tokens`` more output tokens are known: the workload's own, or the one that the model has ``chosen``."""
        ids = None
        if self.forced is not None:
            ids = self.forced[self._generated : self._generated + tokens]
        elif chosen >= 0:
            ids = np.array([chosen], dtype=np.int32)
        self.log.extend(tokens, ids)
        self._generated += tokens

    def start_together(self, together: Together) -> None:
        """From now on tokens come ``together`` with others."""
        self.together, self._since, self._first = together, together.ticks, len(together.times)

    def settle(self, chosen: int = -1) -> None:
        """Write down what came together so far; ``chosen``: see :meth:`generated`."""
        assert self.together is not None
        tokens, self._since = self.together.ticks - self._since, self.together.ticks
        if tokens:
            self.generated(tokens, chosen)

    def end_together(self) -> None:
        """From now on tokens come one by one."""
        assert self.together is not None
        self.settle()
        self.record.token_times.share(self.together.times, self._first)
        self.together = None

    def expect(self, missing: list[Missing]) -> None:
        """Set what has to be computed next."""
        self.missing = deque(missing)
        self.missing_tokens = sum([part.stop - part.start for part in missing])
        self.decoding = False

    def expect_newest(self) -> None:
        """The newest token is to be computed next: the request decodes."""
        self.missing_tokens = 1
        self.decoding = True

    def forced_token(self, ahead: int = 0) -> int:
        """The workload's own next token, -1 where the model is free."""
        return -1 if self.forced is None else int(self.forced[self.generated_tokens + ahead])
