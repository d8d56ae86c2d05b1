"""From a workload to the pages that it asks for, numbered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..policy import PageTrace
from ..schema import ConfigError
from ..workloads.tokens import BlockLog
from .requests import Asked

Semantics = Literal["block", "prefix"]
Keys = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Asking:
    """The whole workload as a replay sees it.

    Attributes
    ----------
    trace: its pages. page_tokens: tokens in one: a trace's own blocks in ``block``, else the pages of the config.
    asked: so many of a request's pages are counted as accesses, its first ones. [requests]
    new_tokens, input_tokens, reply_tokens: of each request. [requests]
    """

    trace: PageTrace
    page_tokens: int
    asked: NDArray[np.int64]
    new_tokens: NDArray[np.int64]
    input_tokens: NDArray[np.int64]
    reply_tokens: NDArray[np.int64]

    def fitting(self, capacity: int) -> tuple[PageTrace, NDArray[np.bool_]]:
        """The trace without the requests that need more than ``capacity`` pages at once, and which are left."""
        trace = self.trace
        fits = np.diff(trace.bounds) + np.array(trace.tails) <= capacity
        if fits.all():
            return trace, fits
        kept, bounds = np.flatnonzero(fits).tolist(), trace.bounds
        columns = (trace.limits, trace.tails, trace.arrivals_s, trace.conversations)
        limits, tails, arrivals_s, conversations = ([column[r] for r in kept] for column in columns)
        pages = list(chain.from_iterable(trace.pages[bounds[r] : bounds[r + 1]] for r in kept))
        bounds = [0, *accumulate(bounds[r + 1] - bounds[r] for r in kept)]
        return PageTrace(pages, trace.distinct, bounds, limits, tails, arrivals_s, conversations), fits  # type: ignore[arg-type]


@dataclass(slots=True)
class _Rows:
    """What is collected of each request."""

    keys: list[Keys] = field(default_factory=list)
    numbers: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    arrivals_s: list[float] = field(default_factory=list)
    conversations: list[int] = field(default_factory=list)
    page_tokens: int = 0


def gather(requests: Iterable[Asked], semantics: Semantics, page_size: int) -> Asking:
    """Number the pages of ``requests``, which come in order of arrival.

    ``block``: the block ids of a trace that has them, the last one of each request too, which may not be full; of other
    workloads the full pages of the input. ``prefix``: the full pages of the input and of a reply that has an identity.
    """
    rows = _Rows(page_tokens=page_size)
    for request in requests:
        (_take_blocks if semantics == "block" else _take_prefix)(rows, request, page_size)
        rows.arrivals_s.append(request.arrival_s)
        rows.conversations.append(request.conversation)
    pages, distinct = _numbered(rows.keys)
    asked, limits, tails, new, inputs, replies = np.array(rows.numbers, np.int64).T
    bounds = [0, *accumulate(map(len, rows.keys))]
    order = (rows.arrivals_s, rows.conversations)
    trace = PageTrace(pages, distinct, bounds, limits.tolist(), tails.tolist(), *order)
    return Asking(trace, rows.page_tokens, asked, new, inputs, replies)


def check_pages(requests: Iterable[Asked], semantics: Semantics, page_size: int, device_tokens: int | None) -> None:
    """Refuse ``requests`` without any page that could be found again, and a device that holds no block of a trace.

    Raises
    ------
    ConfigError
        Naming the sizes.
    """
    rows = _Rows(page_tokens=page_size)
    for request in requests:
        (_take_blocks if semantics == "block" else _take_prefix)(rows, request, page_size)
        if not len(rows.keys.pop()):
            continue
        if device_tokens is not None and device_tokens < rows.page_tokens:
            blocks = f"expected at least one block of the trace: {rows.page_tokens} tokens"
            raise ConfigError(f"memory.device_tokens is {device_tokens}, {blocks}")
        return
    raise ConfigError(f"the workload has no full page of {page_size} tokens: there is nothing to replay")


def _take_blocks(rows: _Rows, request: Asked, page_size: int) -> None:
    log = request.log
    if isinstance(log, BlockLog):
        own, rows.page_tokens = log.block_ids, log.block_tokens
    else:
        own = log.page_keys(page_size, request.input_tokens)
    rows.keys.append(own)
    rows.numbers.append((len(own), len(own), 0, *_tokens(request)))


def _take_prefix(rows: _Rows, request: Asked, page_size: int) -> None:
    tokens, stored = request.input_tokens, request.stored_tokens
    rows.keys.append(request.log.page_keys(page_size, stored))
    tail = int(stored % page_size > 0)
    rows.numbers.append((tokens // page_size, (tokens - 1) // page_size, tail, *_tokens(request)))


def _tokens(request: Asked) -> tuple[int, int, int]:
    return request.new_tokens, request.input_tokens, request.reply_tokens


def _numbered(keys: list[Keys]) -> tuple[list[int], int]:
    """All ``keys`` in a row, as numbers in the order of first appearance (each number one object), and how many."""
    if not sum(map(len, keys)):
        return [], 0
    _, first, found = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    numbers = np.array(range(len(first)), object)
    return numbers[rank[found]].tolist(), len(first)
