"""Decisions by hand: segments, lifetimes, costs and sizes, and an oracle that weighs what it sees."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvarena.framework.policy import RunView, Tier
from kvarena.policies.eviction.belady import Belady
from kvarena.policies.eviction.gdsf import GDSF
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.eviction.slru import SLRU
from kvarena.policies.eviction.ttl import TTL

sys.path.insert(0, str(Path(__file__).parent))
from fakes import FakeRun, FakeTier, Linear, bound


def test_slru_protects_what_was_used_twice() -> None:
    for policy, expected in ((SLRU(), [1, 2, 3, 0]), (SLRU(protected_uses=3), [1, 2, 0, 3]), (LRU(), [1, 2, 0, 3])):
        view = bound(policy)
        runs = [FakeRun(0), FakeRun(1), FakeRun(2), FakeRun(3)]
        view.store(policy, *runs[:3])
        view.use(policy, runs[0])
        view.store(policy, runs[3])
        assert view.evict(policy, 4) == expected, policy


def test_ttl_takes_the_expired_first() -> None:
    view = bound(policy := TTL(ttl_s=10.0))
    old, young, younger = FakeRun(0), FakeRun(1), FakeRun(2)
    view.store(policy, old)
    view.now_s = 6.0
    view.store(policy, young, younger)
    view.use(policy, old)
    assert view.evict(policy, 1) == [1]
    view.now_s = 10.5
    assert view.evict(policy, 1) == [0]
    assert view.evict(policy, 1) == [2]


def test_ttl_since_use_is_lru() -> None:
    view = bound(policy := TTL(ttl_s=10.0, since="use"))
    old, young = FakeRun(0), FakeRun(1)
    view.store(policy, old, young)
    view.now_s = 8.0
    view.use(policy, old)
    view.now_s = 11.0
    assert view.evict(policy, 2) == [1, 0]
    with pytest.raises(ValueError, match="ttl_s is 0"):
        TTL(ttl_s=0)


def test_gdsf_weighs_cost_by_size_and_uses() -> None:
    """Per page: 1 at position 0, 1 + 8 slope at position 8; two uses count double."""
    view = bound(policy := GDSF(), costs=Linear(1.0, 0.25))
    early, late, used = FakeRun(0, 2, start=0), FakeRun(1, 2, start=8), FakeRun(2, 2, start=3)
    view.store(policy, late, early, used)
    view.use(policy, used)
    assert view.evict(policy, 6) == [0, 1, 2]


def test_gdsf_ages_what_is_not_used() -> None:
    view = bound(policy := GDSF(), costs=Linear(1.0))
    popular = FakeRun(0)
    view.store(policy, popular)
    for _ in range(2):
        view.use(policy, popular)  # H = 3
    gone = []
    for conversation in (1, 2, 3, 4):
        view.store(policy, FakeRun(conversation))  # H = 1, then 2, then 3, which is as much as the popular one has
        gone += view.evict(policy, 1)
    assert gone == [1, 2, 0, 3]


@pytest.mark.parametrize(("counts_copies", "expected"), [(True, [1, 0]), (False, [0, 1])])
def test_gdsf_lets_go_what_has_a_copy_below(counts_copies: bool, expected: list[int]) -> None:
    view = bound(policy := GDSF(counts_copies), tier=Tier.DEVICE, costs=Linear(1.0, 0.1, host_s=0.1))
    single, copied = FakeRun(0, 4), FakeRun(1, 4, start=4, tiers=(Tier.DEVICE, Tier.HOST))
    view.store(policy, single, copied)
    assert view.evict(policy, 8) == expected


class Returns:
    """Conversation c comes back at ``times[c]``."""

    def __init__(self, *times: float) -> None:
        self.times = times

    def next_use(self, run: RunView) -> float:
        return self.times[run.conversation]


def belady(policy: Belady, times: tuple[float, ...], *runs: FakeRun, now_s: float = 0.0) -> list[int]:
    view = FakeTier(Tier.DEVICE, costs=Linear(1.0, 0.1, host_s=0.2), now_s=now_s)
    policy.bind(view, Returns(*times))
    view.store(policy, *runs)
    return view.evict(policy, sum(run.pages for run in runs))


def test_belady_lets_go_what_is_needed_last() -> None:
    runs = [FakeRun(c) for c in range(4)]
    assert belady(Belady(), (5.0, 9.0, float("inf"), 2.0), *runs) == [2, 1, 0, 3]


def test_belady_weighs_what_coming_back_costs() -> None:
    """Conversation 0 returns later, but costs three times as much; 2 returns first, but a copy lies below."""
    runs = [FakeRun(0, 2, start=20), FakeRun(1, 2), FakeRun(2, 2, tiers=(Tier.DEVICE, Tier.HOST))]
    assert belady(Belady(), (10.0, 8.0, 6.0), *runs) == [2, 1, 0]
    assert belady(Belady(weighs_costs=False), (10.0, 8.0, 6.0), *runs) == [0, 1, 2]


def test_belady_serves_the_overdue_in_order() -> None:
    assert belady(Belady(), (3.0, 1.0, 2.0), *[FakeRun(c) for c in range(3)], now_s=5.0) == [0, 2, 1]
