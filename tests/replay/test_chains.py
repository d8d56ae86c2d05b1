"""Chains: a trace's pages in groups that always come together."""

from __future__ import annotations

import sys
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvarena.framework.policy import PageTrace
from kvarena.framework.replay.trace import Asking

sys.path.insert(0, str(Path(__file__).parent))
from traces import context_traces, long_traces, of_blocks, of_contexts


def test_contexts_are_cut_where_they_fork_end_and_may_hit_no_more() -> None:
    trace = of_contexts([[1, 1, 1, 2], [1, 1, 1, 3, 3], [1], [4, 4, 4]], [0, 1, 1, 0], [0, 0, 0, 1], [0] * 4)
    found = trace.chains
    assert found.rows == [[0, 1, 2], [0, 1, 3], [0, 6], [4, 5]]
    assert found.sizes == [1, 2, 1, 3, 2, 1, 1]  # a partial page belongs to chain 3; chain 0 is asked for by others
    assert found.above == [-1, 0, 1, 1, -1, 4, 0]
    assert found.depths == [0, 1, 3, 3, 0, 2, 1]
    assert (found.pages, found.usable) == ([4, 6, 2, 3], [3, 3, 1, 1])


@settings(max_examples=200, deadline=None)
@given(trace=st.one_of(context_traces(), long_traces()), most=st.integers(0, 12))
def test_chains_are_what_is_asked_for(trace: PageTrace, most: int) -> None:
    fitting = np.zeros(1, np.int64)
    for asked in (trace, Asking(trace, 16, fitting, fitting, fitting, fitting).fitting(most)[0]):
        check(asked)


def check(trace: PageTrace) -> None:
    found = trace.chains
    contents: dict[int, list[int]] = {}
    for request, row in enumerate(found.rows):
        own = trace.pages[trace.bounds[request] : trace.bounds[request + 1]] + [-1 - request] * trace.tails[request]
        starts = [0, *accumulate(found.sizes[chain] for chain in row)]
        assert starts.pop() == len(own) == found.pages[request]
        assert [found.depths[chain] for chain in row] == starts
        assert [found.above[chain] for chain in row] == [-1, *row][: len(row)]
        assert sum(found.sizes[chain] for chain in row[: found.usable[request]]) >= trace.limits[request]
        assert [start < trace.limits[request] for start in starts].count(True) == found.usable[request]
        for chain, start in zip(row, starts, strict=True):
            pages = own[start : start + found.sizes[chain]]
            assert pages
            assert contents.setdefault(chain, pages) == pages
    known = [page for pages in contents.values() for page in pages]
    assert len(known) == len(set(known))


def test_a_page_in_two_contexts_is_refused() -> None:
    with pytest.raises(ValueError, match="in two contexts"):
        of_blocks([1, 2, 3, 2]).chains  # noqa: B018
