"""The queue of an engine."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Collection, Iterator
from itertools import islice

from .request import Request


class WaitingQueue:
    """Requests that wait, suspended ones first, then by arrival; a ``QueueView`` for policies."""

    def __init__(self) -> None:
        self._requests: OrderedDict[int, Request] = OrderedDict()
        self._of: dict[int, dict[int, Request]] = {}  # by conversation
        self._orders: list[tuple[int, int]] = []  # (order of its first request, conversation), sorted
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
        waiting = self._of.get(conversation)
        return max(0, _order(waiting) - self._first) if waiting else None

    def conversations(self) -> Iterator[int]:
        """See ``QueueView.conversations``."""
        at = bisect_right(self._orders, (self._first + 1,))
        yield from sorted([conversation for _, conversation in self._orders[:at]])
        while at < len(self._orders):
            yield self._orders[at][1]
            at += 1

    def add(self, request: Request, *, front: bool = False) -> None:
        """Put ``request`` at the end, or before all others."""
        self._requests[request.id] = request
        waiting = self._of.setdefault(request.conversation, {})
        waiting[request.id] = request
        if len(waiting) == 1:
            insort(self._orders, (request.order, request.conversation))
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
        before = _order(waiting)
        del waiting[request.id]
        after = _order(waiting) if waiting else None
        if before != after:
            del self._orders[bisect_left(self._orders, (before, request.conversation))]
            if after is not None:
                insort(self._orders, (after, request.conversation))
        if not waiting:
            del self._of[request.conversation]


def _order(waiting: dict[int, Request]) -> int:
    """Of the first of the waiting requests of one conversation."""
    return next(iter(waiting.values())).order
