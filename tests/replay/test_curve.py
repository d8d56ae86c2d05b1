"""Points of a curve: what is counted, what is left out, what the best would reach."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvarena.framework.policy import PageTrace
from kvarena.framework.replay.curve import Contest, default_capacities
from kvarena.framework.replay.trace import Asking, Semantics
from kvarena.policies.eviction.belady import Belady
from kvarena.policies.eviction.lru import LRU

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "policies"))
import naive
import reference
from traces import BLOCKS, context_traces, of_blocks, of_contexts


def contest(trace: PageTrace, semantics: Semantics, warmup: int = 0) -> Contest:
    sizes = np.diff(trace.bounds)
    asking = Asking(trace, 16, sizes, sizes, sizes, sizes)
    return Contest(asking, semantics, LRU, Belady, warmup)


@given(blocks=BLOCKS)
def test_an_infinite_cache_misses_each_block_once(blocks: list[int]) -> None:
    found = contest(of_blocks(blocks, [min(3, len(blocks))]), "block")
    assert found.infinite_hits() == len(blocks) - len(set(blocks)) == reference.lru(blocks, len(blocks))
    (point,) = found.points([len(blocks)])
    assert point.hits == point.belady_hits == found.infinite_hits()


@settings(max_examples=60, deadline=None)
@given(trace=context_traces(), warmup=st.integers(0, 5))
def test_an_infinite_cache_finds_every_prefix(trace: PageTrace, warmup: int) -> None:
    hits = naive.tree_cache(trace, 10**6, naive.VALUES["lru"])[0]
    assert contest(trace, "prefix", warmup).infinite_hits() == sum(hits[warmup:])


def test_warm_up_is_replayed_but_not_counted() -> None:
    blocks = [1, 2, 1, 2, 1, 3]
    whole, late = (contest(of_blocks(blocks, [3]), "block", warmup) for warmup in (0, 1))
    assert [(p.accesses, p.hits) for p in whole.points([2])] == [(6, 3)]
    assert [(p.accesses, p.hits) for p in late.points([2])] == [(3, 2)]
    assert late.infinite_hits() == 2


def test_what_does_not_fit_is_counted_apart() -> None:
    trace = of_contexts([[1], [2, 2, 2], [1]], [0] * 3, [0] * 3, [0, 1, 0])
    small, large = contest(trace, "prefix").points([2, 3])
    assert (small.accesses, small.hits, small.refused_requests) == (2, 1, 1)
    assert (large.accesses, large.hits, large.refused_requests, large.evictions) == (5, 0, 0, 2)


def test_belady_replays_once_what_several_policies_are_compared_on() -> None:
    made = []

    def belady() -> Belady:
        made.append(Belady())
        return made[-1]

    blocks = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    for warmup, replays in ((0, 2), (0, 2), (1, 4), (0, 4)):
        asking = contest(of_blocks(blocks, [6]), "block").asking
        points = list(Contest(asking, "block", LRU, belady, warmup).points([2, 3]))
        assert (len(points), len(made)) == (2, replays)
        late = blocks[6 * warmup :]
        assert [point.accesses for point in points] == [len(late)] * 2
    other = contest(of_blocks([*blocks, 3], [6]), "block").asking
    assert other.trace.digest != contest(of_blocks(blocks, [6]), "block").asking.trace.digest


def test_nothing_counted_has_no_ratio() -> None:
    (point,) = contest(of_blocks([1, 1]), "block", warmup=9).points([1])
    assert (point.accesses, point.hit_ratio) == (0, None)


@pytest.mark.parametrize(("distinct", "points", "expected"), [(1000, 3, [125, 250, 500]), (3, 9, [1]), (9, 2, [2, 4])])
def test_default_capacities_double(distinct: int, points: int, expected: list[int]) -> None:
    assert default_capacities(distinct, points) == expected
