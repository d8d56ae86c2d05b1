"""What a policy's fast form of a replay gets and gives: pages as plain numbers, no hooks, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np

from .chains import Chains, chains_of

NEVER = 1 << 50  # a page that nobody asks for again


@dataclass(frozen=True)
class PageTrace:
    """What requests ask a cache for, one request after the other.

    Attributes
    ----------
    pages: the pages that are asked for; numbers 0 .. ``distinct`` - 1, first come first numbered.
    distinct: how many different pages there are.
    bounds: request r asks for ``pages[bounds[r]:bounds[r + 1]]``: its full pages from the first on. [requests + 1]
    limits: of a request's first pages at most so many may hit (a whole input is never taken from the cache). [requests]
    tails: 1 where the request needs one page more, which nobody can find again: its last one, not full. [requests]
    arrivals_s: seconds, ascending. conversations: whose request it is. [requests]
    """

    pages: list[int]
    distinct: int
    bounds: list[int]
    limits: list[int]
    tails: list[int]
    arrivals_s: list[float]
    conversations: list[int]

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.limits)

    @cached_property
    def following(self) -> list[int]:
        """For each access the index of the next one to the same page, or :data:`NEVER`."""
        order = np.argsort(np.array(self.pages, np.int64), kind="stable")
        later = np.full(len(order), NEVER, np.int64)
        same = np.array(self.pages, np.int64)[order]
        again = same[1:] == same[:-1]
        later[order[:-1][again]] = order[1:][again]
        return later.tolist()

    @cached_property
    def previous(self) -> list[int]:
        """For each access the index of the one before to the same page, or -1."""
        later = np.array(self.following, np.int64)
        found = np.full(len(later), -1, np.int64)
        again = np.flatnonzero(later != NEVER)
        found[later[again]] = again
        return found.tolist()

    @cached_property
    def digest(self) -> bytes:
        """Equal for two traces only if they ask for the same."""
        found = blake2b(str((self.distinct, self.requests)).encode(), digest_size=16)
        for column in (self.pages, self.bounds, self.limits, self.tails, self.arrivals_s, self.conversations):
            found.update(np.array(column, float if column is self.arrivals_s else np.int64).tobytes())
        return found.digest()

    @cached_property
    def chains(self) -> Chains:
        """Its pages in groups that always come together: of contexts only, as in replays of prefixes."""
        columns = (self.bounds, self.limits, self.tails)
        return chains_of(np.array(self.pages, np.int64), self.distinct, *(np.array(c, np.int64) for c in columns))


@dataclass(frozen=True, slots=True)
class RequestHits:
    """``hits[r]``: leading pages that request r found. ``evicted_pages``: pages that left to make room."""

    hits: list[int]
    evicted_pages: int
