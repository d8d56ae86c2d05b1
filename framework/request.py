"""A request on its way through the engine."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .memory import Keep, Lease, PageStore
from .metrics.records import RequestRecord
from .workloads.tokens import TokenLog


@dataclass(slots=True)
class Missing:
    """Tokens ``start`` .. ``stop`` to compute; ``write`` False if their K/V are stored and only queries are needed."""

    start: int
    stop: int
    write: bool = True


@dataclass(slots=True, eq=False)
class Request:
    """One turn being served; a ``RequestView`` for policies, which must not look at ``target_tokens`` or ``forced``.

    ``log`` is the context, extended as tokens are generated. ``missing`` is the ordered set of ranges without K/V;
    while ``decoding`` it is the newest token alone, which is not written out. ``lease`` is None while the request
    waits.
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
    generated_tokens: int = 0
    missing: deque[Missing] = field(default_factory=deque)
    missing_tokens: int = 0
    decoding: bool = False
    allocated_tokens: int = 0
    known_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.known_tokens = self.input_tokens + self.generated_tokens

    lease: Lease | None = None
    computed_before: int = 0
    counted: bool = False
    recompute_left: int = 0

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

    def allocate(self, store: PageStore, start: int, stop: int) -> None:
        """Have pages for the tokens ``start`` .. ``stop``.

        Raises
        ------
        OutOfPages
            See ``PageStore.extend``.
        """
        store.extend(self.held, start, stop)
        self.allocated_tokens = max(self.allocated_tokens, -(-stop // store.page_size) * store.page_size)

    def let_go(self, store: PageStore, computed_tokens: int, keep: Keep) -> None:
        """Give the lease back; ``keep`` of the leading ``computed_tokens`` tokens stays stored."""
        store.release(self.held, self.log, computed_tokens, keep)
        self.lease = None
        self.allocated_tokens = 0
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

    def generated(self, tokens: int) -> None:
        """``tokens`` more output tokens are known."""
        self.generated_tokens += tokens
        self.known_tokens += tokens

    def expect(self, missing: list[Missing]) -> None:
        """Set what has to be computed next."""
        self.missing = deque(missing)
        self.missing_tokens = sum(part.stop - part.start for part in missing)
        self.decoding = False

    def expect_newest(self) -> None:
        """The newest token is to be computed next: the request decodes."""
        self.missing_tokens = 1
        self.decoding = True

    def forced_token(self, ahead: int = 0) -> int:
        """The workload's own next token, -1 where the model is free."""
        return -1 if self.forced is None else int(self.forced[self.generated_tokens + ahead])
