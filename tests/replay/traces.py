"""Traces for the tests: of single blocks, and of growing, forking contexts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from hypothesis import strategies as st

from kvarena.framework.policy import PageTrace


def of_blocks(blocks: Sequence[int], requests: Sequence[int] = ()) -> PageTrace:
    """``blocks`` one after another, in requests of so many (the rest in one); a second between two requests."""
    numbers: dict[int, int] = {}
    pages = [numbers.setdefault(block, len(numbers)) for block in blocks]
    sizes = [*requests, len(pages) - sum(requests)]
    return _trace(pages, sizes, len(numbers), sizes, [0] * len(sizes), list(range(len(sizes))))


def of_contexts(
    contexts: Sequence[Sequence[int]], tails: Sequence[int], cuts: Sequence[int], names: Sequence[int]
) -> PageTrace:
    """Pages known by all symbols up to theirs; request r may hit all but ``cuts[r]`` of them."""
    numbers: dict[tuple[int, ...], int] = {}
    pages = [
        numbers.setdefault(tuple(context[: n + 1]), len(numbers)) for context in contexts for n in range(len(context))
    ]
    sizes = [len(context) for context in contexts]
    limits = [max(0, size - cut) for size, cut in zip(sizes, cuts, strict=True)]
    return _trace(pages, sizes, len(numbers), limits, list(tails), list(names))


def _trace(
    pages: list[int], sizes: Sequence[int], distinct: int, limits: Sequence[int], tails: list[int], names: list[int]
) -> PageTrace:
    seconds = [float(second) for second in range(len(sizes))]
    return PageTrace(pages, distinct, [0, *accumulate(sizes)], list(limits), tails, seconds, names)


BLOCKS = st.lists(st.integers(0, 14), min_size=1, max_size=150)
_REQUEST = st.tuples(st.integers(0, 3), st.lists(st.integers(0, 1), max_size=6), st.integers(0, 1), st.integers(0, 1))


@st.composite
def context_traces(draw: st.DrawFn) -> PageTrace:
    """Some conversations whose contexts grow, shrink and fork; at most 7 pages a request, and perhaps a partial one."""
    rows = draw(st.lists(_REQUEST, min_size=1, max_size=25))
    contexts = [[conversation, *path] for conversation, path, _, _ in rows]
    return of_contexts(contexts, [row[2] for row in rows], [row[3] for row in rows], [row[0] for row in rows])


_STRETCHES = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6)), max_size=2)
_KEPT = st.one_of(st.just(12), st.integers(0, 12))
_LONG = st.tuples(st.integers(0, 6), _KEPT, _STRETCHES, st.integers(0, 1), st.sampled_from((0, 0, 1, 4)))


@st.composite
def long_traces(draw: st.DrawFn) -> PageTrace:
    """As :func:`context_traces`, but many pages follow each other without a fork: at most 12, perhaps a partial one.

    A request begins anew or goes on from one of the last six, or from the beginning of it.
    """
    rows = draw(st.lists(_LONG, min_size=1, max_size=60))
    contexts: list[list[int]] = []
    for back, kept, stretches, _, _ in rows:
        begun = contexts[-back][:kept] if 0 < back <= len(contexts) else []
        path = [symbol for symbol, times in stretches for _ in range(times)]
        contexts.append([*(begun or [len(contexts) % 4]), *path][:12])
    names = [back for back, *_ in rows]
    return of_contexts(contexts, [row[3] for row in rows], [row[4] for row in rows], names)
