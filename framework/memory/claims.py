"""Pages that are being computed, so that nobody else computes them at the same time."""

from __future__ import annotations

from collections.abc import ItemsView

from .lease import Lease
from .run import Run


class Claims:
    """At most one claim per lease: the next page that it will publish, by content key."""

    def __init__(self) -> None:
        self._by_key: dict[int, Lease] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: int | None) -> bool:
        return key in self._by_key

    def items(self) -> ItemsView[int, Lease]:
        """Keys and their leases."""
        return self._by_key.items()

    def take(self, lease: Lease) -> None:
        """Claim the page after the published ones of ``lease``, if its input has one and nobody else computes it."""
        if lease.published < len(lease.keys):
            key = int(lease.keys[lease.published])
            if key not in self._by_key:
                lease.claim = key
                self._by_key[key] = lease

    def drop(self, lease: Lease) -> None:
        """Give up the claim of ``lease``, if it has one."""
        if lease.claim is not None:
            del self._by_key[lease.claim]
            lease.claim = None

    def within(self, run: Run) -> bool:
        """True if a claimed page lies in ``run``. O(claims)."""
        return any(_holds(run, lease) for lease in self._by_key.values())


def _holds(run: Run, lease: Lease) -> bool:
    page = lease.published - run.start
    return 0 <= page < run.pages and int(run.keys[page]) == lease.claim
