"""Who runs: requests that decode together, and the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from .decoding import Decoding
from .memory import PageStore
from .request import Request


class Running(Sequence[Request]):
    """Admitted requests in order of admission. ``others``: those of them that do not decode together."""

    def __init__(self, store: PageStore) -> None:
        self.others: dict[int, Request] = {}
        self.decoding = Decoding(store, self.others)
        self._all: dict[int, Request] = {}
        self._admissions = 0

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._all.values())

    @overload
    def __getitem__(self, index: int) -> Request: ...

    @overload
    def __getitem__(self, index: slice) -> list[Request]: ...

    def __getitem__(self, index: int | slice) -> Request | list[Request]:
        return list(self._all.values())[index]

    def add(self, request: Request) -> None:
        """``request`` was admitted."""
        request.admission, self._admissions = self._admissions, self._admissions + 1
        self._all[request.id] = self.others[request.id] = request

    def decode(self, request: Request) -> None:
        """``request`` misses its newest token alone: it decodes with the others that do."""
        del self.others[request.id]
        self.decoding.join(request)

    def part(self, request: Request) -> None:
        """``request`` decodes, but not together with the others."""
        self.decoding.leave(request)
        self.others[request.id] = request

    def remove(self, request: Request) -> None:
        """``request`` runs no more."""
        del self._all[request.id]
        if self.others.pop(request.id, None) is None and request.together is not None:
            self.decoding.leave(request)
