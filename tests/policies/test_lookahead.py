"""CachedAttention's eviction: the window of Figure 9, whole sessions, lifetimes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvarena.framework.policy import Tier
from kvarena.policies.eviction.lookahead import LookAhead
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.prefetch.layerwise import LayerwisePreloading

sys.path.insert(0, str(Path(__file__).parent))
from fakes import FakeQueue, FakeRequest, FakeRun, FakeTier, bound


def queue(*conversations: int) -> FakeQueue:
    return FakeQueue([FakeRequest(c, order=i, id=i) for i, c in enumerate(conversations)])


def test_the_windows_of_figure_nine() -> None:
    """Sessions of one page; the host holds two, the disk four: a prefetch window of 2 and an eviction window of 6.

    Waiting are jobs 1 .. 9 in order. Jobs 1 and 2 are fetched. The host holds 4 and 5: 5, nearer the window's tail, is
    demoted. The disk and host hold 9, 4, 6 and 3 when something must be dropped: 9 waits outside the window and goes,
    then 6, the tail of what is inside.
    """
    jobs = queue(*range(1, 10))
    host = FakeTier(Tier.HOST, capacity=2, capacity_below=4, queue=jobs)
    assert [request.conversation for request in LayerwisePreloading(host_share=1.0).ahead(jobs, host)] == [1, 2]
    policy = LookAhead()
    policy.bind(host)
    host.store(policy, FakeRun(5), FakeRun(4))
    assert policy.window == 6
    assert host.evict(policy, 1) == [5]
    disk = bound(policy := LookAhead(), tier=Tier.DISK, capacity=6, queue=jobs)
    disk.store(policy, FakeRun(4), FakeRun(6), FakeRun(9), FakeRun(3))
    assert disk.evict(policy, 1) == [9]
    assert disk.evict(policy, 3) == [6, 4, 3]


def test_sessions_that_nobody_waits_for_leave_first_least_recent_before_others() -> None:
    view = bound(policy := LookAhead(), capacity=100, queue=queue(3, 1))
    runs = [FakeRun(conversation) for conversation in range(5)]
    view.store(policy, *runs)
    view.use(policy, runs[0])
    assert view.evict(policy, 5) == [2, 4, 0, 1, 3]


def test_lru_knows_no_queue() -> None:
    view = bound(policy := LRU(), capacity=100, queue=queue(0, 1))
    view.store(policy, *[FakeRun(conversation) for conversation in range(4)])
    assert view.evict(policy, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize(("below", "window", "expected"), [(0, 3, [3, 0, 2]), (2, 4, [3, 0, 2]), (12, 9, [0, 3, 2])])
def test_the_window_is_all_memory_below_over_the_mean_session(below: int, window: int, expected: list[int]) -> None:
    """Three sessions of two pages in a tier of six. They wait at 3 (session 2), 6 (session 3) and 8 (session 0)."""
    order = queue(9, 9, 9, 2, 9, 9, 3, 9, 0)
    view = bound(policy := LookAhead(), capacity=6, capacity_below=below, queue=order)
    view.store(policy, FakeRun(3, 2), FakeRun(0, 2), FakeRun(2, 2))
    assert policy.window == window
    assert view.evict(policy, 6) == expected


def test_a_session_leaves_whole_deepest_first() -> None:
    view = bound(policy := LookAhead(), capacity=100)
    view.store(policy, FakeRun(0, 3), FakeRun(1, 2), FakeRun(0, 4, start=3), FakeRun(0, 1, start=7))
    named = []
    for victim in policy.victims(1):
        named.append((victim.run.conversation, victim.run.start, victim.pages, victim.more))
        policy.removed(victim.run, True)
    assert named == [(1, 0, 2, False)]
    for victim in policy.victims(1):
        named.append((victim.run.conversation, victim.run.start, victim.pages, victim.more))
        policy.removed(victim.run, True)
    assert named[1:] == [(0, 7, 1, True), (0, 3, 4, True), (0, 0, 3, False)]


def test_what_is_pinned_stays_and_no_other_session_pays_for_it() -> None:
    view = bound(policy := LookAhead(), capacity=100)
    head, tail, other = FakeRun(0, 3), FakeRun(0, 1, start=3), FakeRun(1, 2)
    view.store(policy, head, tail, other)
    view.pinned.add(head)
    assert view.evict(policy, 1) == [0]
    assert view.evict(policy, 1) == [1]
    assert view.evict(policy, 1) == []


def test_a_shared_run_belongs_to_its_last_user() -> None:
    view = bound(policy := LookAhead(), capacity=100, queue=queue(0))
    shared, own = FakeRun(0), FakeRun(0, start=1)
    view.store(policy, shared, own)
    shared.conversation = 1
    view.use(policy, shared)
    assert view.evict(policy, 1) == [1]
    assert view.evict(policy, 1) == [0]


def test_a_lifetime_overrules_the_queue() -> None:
    view = bound(policy := LookAhead(ttl_s=3600.0), capacity=100, queue=queue(0, 1))
    view.store(policy, FakeRun(0))
    view.now_s = 3000.0
    view.store(policy, FakeRun(1), FakeRun(2))
    assert list(policy.order()) == [2, 1, 0]
    view.now_s = 3601.0
    assert list(policy.order()) == [0, 2, 1]
    with pytest.raises(ValueError, match="ttl_s is 0"):
        LookAhead(ttl_s=0)


def test_splitting_and_growing_lose_no_page() -> None:
    view = bound(policy := LookAhead(), capacity=10)
    run, other = FakeRun(0, 4), FakeRun(1, 1)
    view.store(policy, run, other)
    run.pages += 2
    policy.inserted(run, 2)  # it grew, which is no use
    upper = FakeRun(0, 2)
    run.pages, run.start = 4, 2
    policy.split(upper, run)
    assert policy.window == 10 * 2 // 7
    assert view.evict(policy, 1) == [0, 0]
    assert view.evict(policy, 1) == [1]
    assert policy.window == 0


def test_the_disk_drops_its_copies_of_what_was_fetched_before_it_loses_a_session() -> None:
    view = bound(policy := LookAhead(), tier=Tier.DISK, capacity=100, queue=queue(1, 2))
    fetched, gone, waiting = FakeRun(1, 2), FakeRun(0, 2), FakeRun(2, 2)
    fetched.tiers = (Tier.HOST, Tier.DISK)
    view.store(policy, fetched, gone, waiting)
    assert view.evict(policy, 2) == [1]
    assert view.evict(policy, 2) == [0]
