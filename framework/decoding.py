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
        self._last: dict[int, int] = {}  # request -> tick of its last token
        self._ends: list[tuple[int, int, int, Request]] = []  # (tick of the last token, admission, a number, request)
        # by the tick, modulo, of a new page: request -> admission, tick of its position 0, lease
        self._due: list[dict[int, tuple[int, int, Lease]]] = [{} for _ in range(self._page)]
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
        origin = self._origin(request)
        self._due[origin % self._page][request.id] = request.admission, origin, request.held
        self._pushed += 1
        last_tick = self._last[request.id] = self.ticks + request.remaining_tokens
        heapq.heappush(self._ends, (last_tick, request.admission, self._pushed, request))
        request.start_together(self)

    def _origin(self, request: Request) -> int:
        """The tick at which the newest token of ``request`` would have been its first."""
        return self.ticks - (request.known_tokens - 1)

    def leave(self, request: Request) -> None:
        """``request`` decodes no more; what it got is written to it."""
        del self._requests[request.id]
        self.keys -= request.known_tokens
        del self._last[request.id]
        del self._due[self._origin(request) % self._page][request.id]
        request.end_together()
        if not self._requests:
            self._latest = -1
            self._ends.clear()

    # --- a step, or a stretch of them ---------------------------------------------------------------------------

    def remaining(self) -> int:
        """Steps until the first of them has all its tokens."""
        ends, last = self._ends, self._last
        while last.get(ends[0][3].id) != ends[0][0]:  # it left, or left and came back
            heapq.heappop(ends)
        return ends[0][0] - self.ticks

    def pages_within(self, steps: int) -> int:
        """New pages of the next ``steps`` steps."""
        whole, rest = divmod(steps, self._page)
        first = self.ticks % self._page
        part = sum([len(self._due[(first + step) % self._page]) for step in range(rest)])
        return whole * len(self._requests) + part

    def allocate(self, first: int, stop: int) -> None:
        """Give the requests the pages of the next steps ``first`` .. ``stop``, one request after the other."""
        size, wanted = self._page, list[tuple[int, int, Lease]]()
        for tick in range(self.ticks + first, self.ticks + stop):
            for admission, origin, lease in self._due[tick % size].values():
                wanted.append((admission, (tick - origin) // size, lease))
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
