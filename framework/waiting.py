"""The queue of an engine."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Collection, Iterator
from itertools import chain, islice
from operator import itemgetter

from .request import Request


class WaitingQueue:
    """Requests that wait, suspended ones first, then by arrival; a ``QueueView`` for policies."""

    def __init__(self) -> None:
        self._requests: OrderedDict[int, Request] = OrderedDict()
        self._of: dict[int, dict[int, Request]] = {}  # by conversation
        self._order_of: dict[int, int] = {}  # conversation -> order of its first request
        self._orders: list[tuple[int, int]] = []  # the same the other way round, sorted
        self._first = 0  # order of the head of the queue

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request: Request) -> bool:
        return request.id in self._requests

    def all(self) -> Collection[Request]:
        """The requests in order."""
        return self._requests.values()

    def head(self, limit: int) -> Iterator[Request]:
        """The first ``limit`` requests."""
        return islice(self._requests.values(), limit)

    def position(self, conversation: int) -> int | None:
        """See ``QueueView.position``."""
        order = self._order_of.get(conversation)
        return None if order is None else max(0, order - self._first)

    def conversations(self) -> Iterator[int]:
        """See ``QueueView.conversations``."""
        after = bisect_right(self._orders, (self._first + 1,))
        first = sorted([conversation for _, conversation in self._orders[:after]])
        return chain(first, map(itemgetter(1), self._orders[after:]))

    def add(self, request: Request, *, front: bool = False) -> None:
        """Put ``request`` at the end, or before all others."""
        self._requests[request.id] = request
        waiting = self._of.setdefault(request.conversation, {})
        waiting[request.id] = request
        if len(waiting) == 1:
            self._note_order(request.conversation, request.order)
        if front:
            self._requests.move_to_end(request.id, last=False)
        if front or len(self._requests) == 1:
            self._first = request.order

    def remove(self, request: Request) -> None:
        """Take ``request`` out."""
        del self._requests[request.id]
        if self._requests and request.order == self._first:
            self._first = next(iter(self._requests.values())).order
        waiting = self._of[request.conversation]
        del waiting[request.id]
        if not waiting:
            del self._of[request.conversation]
        self._note_order(request.conversation, next(iter(waiting.values())).order if waiting else None)

    def _note_order(self, conversation: int, order: int | None) -> None:
        """``order`` is that of the first waiting request of ``conversation`` now, if there is one."""
        before = self._order_of.pop(conversation, None)
        if before is not None:
            del self._orders[bisect_left(self._orders, (before, conversation))]
        if order is not None:
            self._order_of[conversation] = order
            insort(self._orders, (order, conversation))
