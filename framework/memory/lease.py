"""What a running request holds of the store."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..policy import Residency, Tier
from .run import Keys, Run, Slots


@dataclass(slots=True)
class Match:
    """What the store knows of a context: the chain of runs with the pages that match in each, and the partial tail.

    ``blocked``: somebody is computing, loading or fetching the page that follows the chain, or one in it.
    """

    chain: list[tuple[Run, int]]
    tail: Run | None
    residency: Residency
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class StoredTail:
    """A partial page that left the tree for its request and still has to be loaded: where it lies, and its key."""

    page: int
    tier: Tier
    slots: Slots
    keys: Keys
    fill: int


@dataclass(slots=True, eq=False)
class Lease:
    """A request's pages. ``table[p]`` is the device slot of page p, -1 where none is allocated yet.

    The first ``published`` pages are in the tree under ``leaf`` and its ancestors, all pinned; later ones are the
    request's own. ``holes`` are pinned runs of that chain that were not resident on the device, front first,
    ``filling`` those that have got slots but are not computed yet, ``loading`` those whose content is on its way from a
    tier below. ``claim`` is the key of the next page that this request will publish. ``keys`` are those of the input's
    full pages. ``private``: it can publish no more, because another request is filling a hole at the same place.
    ``tail``: its partial page, as long as that lies in a tier below.
    """

    conversation: int
    leaf: Run
    keys: Keys
    table: Slots = field(default_factory=lambda: np.full(16, -1, dtype=np.int32))
    published: int = 0
    holes: list[Run] = field(default_factory=list)
    filling: list[Run] = field(default_factory=list)
    loading: list[Run] = field(default_factory=list)
    claim: int | None = None
    private: bool = False
    tail: StoredTail | None = None

    def reserve(self, pages: int) -> None:
        """Make the table at least ``pages`` long."""
        if pages > len(self.table):
            longer = np.full(max(pages, 2 * len(self.table)), -1, dtype=np.int32)
            longer[: len(self.table)] = self.table
            self.table = longer

    def own_slots(self) -> Slots:
        """Slots of pages that are not in the tree."""
        own = self.table[self.published :]
        return own[own >= 0]
