"""What a running request holds of the store."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..policy import Residency, Tier
from .run import Keys, Run, Slots


@dataclass(slots=True)
class Match:
    """What the store knows of a context: the chain of runs with the pages that match in each, and the partial tail.

    ``blocked``: somebody is computing, loading or fetching the page that follows the chain, or one in it. ``end``: the
    run after which the context goes on, with the page ``following`` (by key) and the conversation's ``own_tail``; None
    if that is inside the last run of the chain.
    """

    chain: list[tuple[Run, int]]
    tail: Run | None
    residency: Residency
    blocked: bool = False

    end: Run | None = None
    following: int | None = None
    own_tail: Run | None = None

    def depends(self) -> Basis:
        """What the chain and the tail rest on."""
        runs = [run for run, _ in self.chain]
        if self.own_tail is not None:
            runs.append(self.own_tail)
        return Basis([(run, run.stamp) for run in runs], self)


@dataclass(frozen=True, slots=True)
class Basis:
    """What ``match`` rests on: its runs as they were."""

    runs: list[tuple[Run, int]]
    match: Match

    def holds(self, conversation: int) -> bool:
        """A lookup for ``conversation`` would find the same chain and tail, resident in the same tiers. O(runs)."""
        match, end = self.match, self.match.end
        for run, stamp in self.runs:
            if run.stamp != stamp:
                return False
        if end is None:
            return True
        return match.following not in end.children and end.tails.get(conversation) is match.own_tail


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
