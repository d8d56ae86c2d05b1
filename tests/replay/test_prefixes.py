"""Prefix semantics: against caches written from the definition, and the fast forms against the hooks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvarena.framework.policy import Eviction, PageTrace
from kvarena.framework.registry import Registry
from kvarena.framework.replay import is_fast, prefixes_by_hooks, replay_prefixes

sys.path.insert(0, str(Path(__file__).parent))
import naive
from traces import context_traces, long_traces, of_contexts

REGISTRY = Registry.discover()
FAST = [name for name in REGISTRY.names("eviction") if is_fast(REGISTRY.build("eviction", name, {}), "prefix")]
CAPACITIES = st.integers(8, 30)  # the largest request needs 8 pages
KNOBS: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in FAST),
    ("slru", {"protected_uses": 3}),
    ("s3fifo", {"small_ratio": 0.3, "promote_above": 0}),
    ("s3fifo", {"small_ratio": 0.5, "ghost_ratio": 0.1, "max_count": 1}),
]


def make(name: str, **knobs: object) -> Eviction:
    policy = REGISTRY.build("eviction", name, knobs)
    assert isinstance(policy, Eviction)
    return policy


def test_the_policies_with_a_fast_form() -> None:
    assert FAST == ["arc", "belady", "fifo", "gdsf", "lfu", "lru", "s3fifo", "slru"]


@pytest.mark.parametrize("name", naive.VALUES)
@settings(max_examples=120, deadline=None)
@given(trace=context_traces(), capacity=CAPACITIES)
def test_hits_equal_the_definition(name: str, trace: PageTrace, capacity: int) -> None:
    done = replay_prefixes(make(name), trace, capacity, 16)
    assert (done.hits, done.evicted_pages) == naive.tree_cache(trace, capacity, naive.VALUES[name])


@settings(max_examples=200, deadline=None)
@given(trace=context_traces(), capacity=CAPACITIES)
def test_lru_is_vllms_free_queue(trace: PageTrace, capacity: int) -> None:
    assert replay_prefixes(make("lru"), trace, capacity, 16).hits == naive.free_queue(trace, capacity)


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=120, deadline=None)
@given(trace=context_traces(), capacity=CAPACITIES)
def test_the_fast_form_decides_as_the_hooks_do(name: str, trace: PageTrace, capacity: int) -> None:
    assert make(name).replay_prefixes(trace, capacity) == prefixes_by_hooks(make(name), trace, capacity, 16)


@pytest.mark.parametrize(("name", "knobs"), KNOBS)
@settings(max_examples=150, deadline=None)
@given(trace=long_traces(), capacity=st.integers(13, 40))
def test_long_stretches_without_forks(name: str, knobs: dict[str, object], trace: PageTrace, capacity: int) -> None:
    done = make(name, **knobs).replay_prefixes(trace, capacity)
    assert done == prefixes_by_hooks(make(name, **knobs), trace, capacity, 16)
    if name in naive.VALUES and not knobs:
        assert (done.hits, done.evicted_pages) == naive.tree_cache(trace, capacity, naive.VALUES[name])


@pytest.mark.parametrize("name", REGISTRY.names("eviction"))
@settings(max_examples=40, deadline=None)
@given(trace=context_traces(), capacity=CAPACITIES)
def test_every_policy_replays_within_bounds(name: str, trace: PageTrace, capacity: int) -> None:
    infinite = naive.tree_cache(trace, 10**6, naive.VALUES["lru"])[0]
    done = replay_prefixes(make(name), trace, capacity, 16)
    assert all(0 <= hits <= most for hits, most in zip(done.hits, infinite, strict=True))


def test_the_last_page_of_a_whole_input_is_computed_again() -> None:
    """Two pages asked for twice: with a limit of one, one hits, and the other is stored again in its place."""
    trace = of_contexts([[1, 1], [1, 1], [1, 1]], [0, 0, 0], [1, 1, 0], [0, 0, 0])
    assert replay_prefixes(make("lru"), trace, 2, 16) == prefixes_by_hooks(make("lru"), trace, 2, 16)
    assert replay_prefixes(make("lru"), trace, 2, 16).hits == [0, 1, 2]


def test_a_partial_page_takes_room_and_is_never_found() -> None:
    full = of_contexts([[1], [2], [1]], [0, 0, 0], [0, 0, 0], [0, 1, 0])
    partial = of_contexts([[1], [2], [1]], [0, 1, 0], [0, 0, 0], [0, 1, 0])
    assert [replay_prefixes(make("lru"), trace, 2, 16).hits[2] for trace in (full, partial)] == [1, 0]


def test_a_page_that_others_follow_stays() -> None:
    """FIFO stored page 1 first, but its context goes on: the end of it leaves."""
    trace = of_contexts([[1], [1, 1], [2], [1, 1]], [0] * 4, [0] * 4, [0, 0, 1, 0])
    assert replay_prefixes(make("fifo"), trace, 2, 16).hits == [0, 1, 0, 1]
