"""The queue of an engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from itertools import islice

from .request import Request


class WaitingQueue:
    """Requests that wait, suspended ones first, then by arrival; a ``QueueView`` for policies."""

    def __init__(self) -> None:
        self._requests: OrderedDict[int, Request] = OrderedDict()
        self._of: dict[int, dict[int, Request]] = {}  # by conversation

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
        if not waiting:
            return None
        first = next(iter(self._requests.values()))
        return max(0, next(iter(waiting.values())).order - first.order)

    def add(self, request: Request, *, front: bool = False) -> None:
        """Put ``request`` at the end, or before all others."""
        self._requests[request.id] = request
        self._of.setdefault(request.conversation, {})[request.id] = request
        if front:
            self._requests.move_to_end(request.id, last=False)

    def remove(self, request: Request) -> None:
        """Take ``request`` out."""
        del self._requests[request.id]
        waiting = self._of[request.conversation]
        del waiting[request.id]
        if not waiting:
            del self._of[request.conversation]
