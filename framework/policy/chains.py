"""Pages of a trace that always come together: what a fast replay of prefixes counts in place of single pages."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chains:
    """The contexts of a trace, cut where they fork, where a request ends and where its limit lies.

    Who asks for one page of a chain asks for all of it, the first page first. Of a chain, too, only the end may leave.

    Attributes
    ----------
    sizes: pages. above: the chain that comes before, -1: none. depths: pages that come before. [chains]
    rows: the chains that a request asks for, the one with its partial page included. [requests]
    pages: so many pages they are. usable: so many of the first of them may hit. [requests]
    """

    sizes: list[int]
    above: list[int]
    depths: list[int]
    rows: list[list[int]]
    pages: list[int]
    usable: list[int]


def chains_of(pages: Numbers, distinct: int, bounds: Numbers, limits: Numbers, tails: Numbers) -> Chains:
    """The chains of requests for ``pages``: see ``PageTrace``. Each page must always come after the same one.

    Raises
    ------
    ValueError
        If a page is asked for in two contexts.
    """
    heads, number = _heads(pages, distinct, bounds, limits)  # indices into pages: where a chain of a request begins
    row = number[pages[heads]]
    sizes = np.zeros(int(number[-1]) + 1 if len(number) else 0, np.int64)
    sizes[row] = np.diff(np.append(heads, len(pages)))
    ends = np.searchsorted(heads, bounds)
    lengths = np.diff(bounds)
    depths = heads - np.repeat(bounds[:-1], np.diff(ends))
    usable = np.searchsorted(heads, bounds[:-1] + limits) - ends[:-1]
    # A partial page is the end of its request's last chain if nobody asks for that again, else a chain of its own.
    alone = np.zeros(len(tails), bool)
    filled = np.flatnonzero((lengths > 0) & (tails > 0))
    last = row[ends[1:][filled] - 1]
    alone[filled] = np.bincount(row, minlength=len(sizes))[last] == 1
    sizes[row[ends[1:][alone] - 1]] += 1
    apart = np.flatnonzero((tails > 0) & ~alone)
    row = np.insert(row, ends[1:][apart], len(sizes) + np.arange(len(apart)))
    depths = np.insert(depths, ends[1:][apart], lengths[apart])
    sizes = np.append(sizes, np.ones(len(apart), np.int64))
    ends = ends + np.searchsorted(apart, np.arange(len(ends)))
    above, deep = np.full(len(sizes), -1), np.zeros(len(sizes), np.int64)
    above[row], deep[row] = np.where(depths > 0, np.append(-1, row[:-1]), -1), depths
    flat, bounded = row.tolist(), ends.tolist()
    rows = [flat[first:stop] for first, stop in pairwise(bounded)]
    return Chains(sizes.tolist(), above.tolist(), deep.tolist(), rows, (lengths + tails).tolist(), usable.tolist())


def _heads(pages: Numbers, distinct: int, bounds: Numbers, limits: Numbers) -> tuple[Numbers, Numbers]:
    """Which accesses begin a chain, and the chain of each page that does."""
    lengths = np.diff(bounds)
    before = np.append(-1, pages[:-1])[: len(pages)]
    before[bounds[:-1][lengths > 0]] = -1
    parent = np.full(distinct, -1)
    parent[pages] = before
    if (parent[pages] != before).any():
        raise ValueError("a page is asked for in two contexts: its key must tell all that comes before it")
    cut = np.bincount(parent[parent >= 0], minlength=distinct) > 1  # it forks
    cut[pages[bounds[1:][lengths > 0] - 1]] = True
    limited = (limits > 0) & (limits < lengths)
    cut[pages[bounds[:-1][limited] + limits[limited] - 1]] = True
    begins = (parent < 0) | cut[parent]
    return np.flatnonzero(begins[pages]), np.cumsum(begins) - 1
