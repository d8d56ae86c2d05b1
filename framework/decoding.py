"""The requests that decode, as one: what is equal for all of them is kept once."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter

from .execution.contract import Segment
from .memory import Lease, PageStore
from .metrics.token_times import Ticks
from .request import Request


class Decoding:
    """Running requests that miss nothing but their newest token; a ``DecodingView`` for scheduling policies.

    All of them take part in an iteration, or none: a step costs what begins, ends or needs a page, not what goes on.
    What a request got here is written to it when it leaves (see ``Request.together``).

    Attributes
    ----------
    ticks: tokens that each has got since the run began.
    keys: keys that the next step sees, all requests together.
    """

    def __init__(self, store: PageStore, others: Mapping[int, Request]) -> None:
        """``others``: the running requests that are not here, in order of admission."""
        self.ticks = 0
        self.keys = 0
        self.times = Ticks()
        self._store, self._others = store, others
        self._page = store.page_size
        self._requests: dict[int, Request] = {}
        self._ends: list[tuple[int, int, int, Request]] = []  # (tick of the last token, admission, a number, request)
        self._due: list[dict[int, Request]] = [{} for _ in range(self._page)]  # by the tick, modulo, of a new page
        self._pushed = 0
        self._latest = -1  # of all that were ever here together, the last one admitted

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    @property
    def pages(self) -> int:
        """See ``DecodingView.pages``."""
        return len(self._due[self.ticks % self._page])

    @property
    def first(self) -> bool:
        """See ``DecodingView.first``."""
        return not self._others or self._latest < next(iter(self._others.values())).admission

    # --- who ----------------------------------------------------------------------------------------------------

    def join(self, request: Request) -> None:
        """``request`` decodes from the next step on."""
        self._requests[request.id] = request
        self._latest = max(self._latest, request.admission)
        self.keys += request.known_tokens
        self._due[self._phase(request)][request.id] = request
        self._pushed += 1
        heapq.heappush(self._ends, (self._last_tick(request), request.admission, self._pushed, request))
        request.start_together(self)

    def _last_tick(self, request: Request) -> int:
        return self.ticks + request.remaining_tokens

    def _phase(self, request: Request) -> int:
        return (self.ticks - (request.known_tokens - 1)) % self._page

    def leave(self, request: Request) -> None:
        """``request`` decodes no more; what it got is written to it."""
        del self._requests[request.id]
        self.keys -= request.known_tokens
        del self._due[self._phase(request)][request.id]
        request.end_together()
        if not self._requests:
            self._latest = -1
            self._ends.clear()

    # --- a step, or a stretch of them ---------------------------------------------------------------------------

    def remaining(self) -> int:
        """Steps until the first of them has all its tokens."""
        last_tick, _, _, request = self._ends[0]
        while request.together is not self or last_tick != self._last_tick(request):
            heapq.heappop(self._ends)
            last_tick, _, _, request = self._ends[0]
        return last_tick - self.ticks

    def pages_within(self, steps: int) -> int:
        """New pages of the next ``steps`` steps."""
        whole, rest = divmod(steps, self._page)
        first = self.ticks % self._page
        part = sum(len(self._due[(first + step) % self._page]) for step in range(rest))
        return whole * len(self._requests) + part

    def allocate(self, first: int, stop: int) -> None:
        """Give the requests the pages of the next steps ``first`` .. ``stop``, one request after the other."""
        wanted: list[tuple[int, int, Lease]] = []
        for step in range(first, stop):
            for request in self._due[(self.ticks + step) % self._page].values():
                page = (request.known_tokens - 1 + step) // self._page
                wanted.append((request.admission, page, request.held))
        if len(wanted) > 1:
            wanted.sort(key=itemgetter(0, 1))
        if wanted:
            self._store.append(wanted)

    def segments(self) -> list[Segment]:
        """The queries of one step, for executors that want each."""
        made: list[Segment] = []
        for request in self._requests.values():
            start = request.known_tokens - 1
            table, forced = request.held.table, request.forced_token()
            made.append(Segment(request.id, request.log, start, 1, table, True, True, forced))
        return made

    def commit(self, tokens: list[int], ends: Sequence[tuple[float, int]]) -> list[Request]:
        """Steps have ended, at each of ``ends`` so many; ``tokens`` (or none) are what the model chose. Returns the
        requests that have all their tokens, which have left."""
        for end_s, steps in ends:
            self.ticks += steps
            self.keys += steps * len(self._requests)
            self.times.append(end_s, steps)
        if tokens and tokens[0] >= 0:
            for request, token in zip(self._requests.values(), tokens, strict=True):
                request.settle(token)
                request.record.output_ids.append(token)
        done: list[Request] = []
        while self._requests and not self.remaining():
            request = heapq.heappop(self._ends)[3]
            self.leave(request)
            done.append(request)
        return done
