"""Pensieve's retention value: the layout it leaves, its ratio across conversations, and brute force over pages."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvarena.framework.memory import PageStore
from kvarena.framework.policy import Tier
from kvarena.framework.workloads.tokens import IdLog
from kvarena.policies.eviction.retention import RetentionValue
from kvarena.policies.writeback.none import NoWriteback

sys.path.insert(0, str(Path(__file__).parent))
from fakes import FakeRun, bound


class Linear:
    """A chunk costs ``constant`` plus ``slope`` per token it attends to."""

    def __init__(self, constant: float = 1.0, slope: float = 1e-4) -> None:
        self.constant, self.slope = constant, slope

    def recompute_s(self, start: int, stop: int) -> float:
        return self.constant + self.slope * start

    def load_s(self, tokens: int, tier: Tier) -> float:
        return 0.0


def make_store(pages: int, costs: Linear, chunk_tokens: int = 4, *, leaves_only: bool = False) -> PageStore:
    policy = RetentionValue(chunk_tokens, 4096)
    tiers = {Tier.DEVICE: pages}, {Tier.DEVICE: policy}
    return PageStore(4, *tiers, costs=costs, writeback=NoWriteback(), leaves_only=leaves_only)


def serve(store: PageStore, conversation: int, pages: int) -> None:
    log = context(conversation, pages)
    match = store.lookup(log, len(log), conversation)
    lease = store.acquire(match, match.residency.tokens, conversation, log.page_keys(4, len(log)))
    store.extend(lease, 0, len(log))
    store.publish(lease, log, len(log))
    store.release(lease, log, len(log), "pages")
    store.check()


def context(conversation: int, pages: int) -> IdLog:
    return IdLog(np.arange(4 * pages, dtype=np.int32) + 10_000 * (conversation + 1))


def resident(store: PageStore, conversation: int, pages: int) -> list[int]:
    log = context(conversation, pages)
    spans = store.lookup(log, len(log), conversation).residency.spans
    return [page for span in spans if span.tiers for page in range(span.start // 4, span.stop // 4)]


def test_leading_chunks_leave_first_and_the_suffix_stays() -> None:
    store = make_store(12, Linear())
    serve(store, 0, 8)
    serve(store, 1, 7)
    assert resident(store, 0, 8) == [3, 4, 5, 6, 7]
    assert resident(store, 1, 7) == list(range(7))


def test_where_only_leading_runs_help_chunks_leave_from_the_end() -> None:
    store = make_store(12, Linear(), leaves_only=True)
    serve(store, 0, 8)
    serve(store, 1, 7)
    assert resident(store, 0, 8) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("slope", "left"), [(0.0, (8, 0)), (0.25, (5, 3))])
def test_cost_over_idle_time_decides_across_conversations(slope: float, left: tuple[int, int]) -> None:
    """A flat cost sends the longest idle conversation away; a steep one keeps its late chunks.

    By hand: when the third arrives, at tick 5, page p is worth (1 + 4 slope p) over 4 in the first conversation and
    over 2 in the second, and eight pages must go.
    """
    store = make_store(24, Linear(1.0, slope))
    serve(store, 0, 10)
    serve(store, 1, 10)
    serve(store, 2, 12)
    assert resident(store, 0, 10) == list(range(left[0], 10))
    assert resident(store, 1, 10) == list(range(left[1], 10))


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8)), min_size=2, max_size=14),
    slope=st.sampled_from([0.0, 0.013, 0.21, 3.0]),
)
def test_equals_brute_force_over_pages(requests: list[tuple[int, int]], slope: float) -> None:
    costs, capacity, tick = Linear(1.0, slope), 14, 0
    store = make_store(capacity, costs)
    held: dict[tuple[int, int], int] = {}  # (conversation, page) -> last tick
    for conversation, pages in requests:
        tick += 1
        wanted = {(conversation, page) for page in range(pages)}
        kept = {key: last for key, last in held.items() if key not in wanted}

        def value(key: tuple[int, int], kept: dict[tuple[int, int], int] = kept, tick: int = tick) -> tuple[float, int]:
            return float(np.interp(4 * key[1], *curve(costs))) / (tick - kept[key] + 1), key[1]

        while len(kept) + pages > capacity:
            del kept[min(kept, key=value)]
        serve(store, conversation, pages)
        tick += 1
        held = kept | dict.fromkeys(wanted, tick)
        for other in range(4):
            assert resident(store, other, 8) == sorted(page for key, page in held if key == other)


def curve(costs: Linear) -> tuple[list[int], list[float]]:
    contexts = [0, *(1 << k for k in range(13))]
    return contexts, [costs.recompute_s(length, length + 4) for length in contexts]


def test_what_became_part_of_another_run_meanwhile_is_not_named() -> None:
    view = bound(policy := RetentionValue(), leaves_only=False)
    first, gone, last = FakeRun(0), FakeRun(1), FakeRun(2)
    view.tick = 9
    for run in (first, gone, last):  # idle equally long: looked at together
        policy.inserted(run, 1)
        policy.released(run)
    named = []
    for victim in policy.victims(3):
        named.append(victim.run)
        policy.removed(victim.run, True)
        policy.removed(gone, False)
    assert named == [first, last]
