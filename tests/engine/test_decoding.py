"""Requests that decode together: whoever schedules them as before gets what it got before."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvarena.framework.metrics.gaps import TokenGaps
from kvarena.framework.metrics.token_times import Ticks, TokenTimes
from kvarena.framework.policy import Plan, SchedulerView, Scheduling, serve_running
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.prefetch.holes import RecomputeHoles
from kvarena.policies.prefetch.prefix import PrefixCache
from kvarena.policies.scheduling.chunked import Chunked

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyWorkload, serve


class OneByOne(Chunked):
    """The same decisions, request by request, as a policy that knows nothing of ``view.decoding`` takes them."""

    def plan(self, view: SchedulerView) -> Plan:
        plan = Plan(stable=True)
        budget, room = serve_running(view, plan, view.running, self.max_batched_tokens)
        if budget and not plan.suspended:
            self._admit(view, plan, budget, room)
        return plan


class EveryOther(Chunked):
    """Half of those that decode rest in turn."""

    turn = 0

    def plan(self, view: SchedulerView) -> Plan:
        plan = OneByOne.plan(self, view)  # type: ignore[arg-type]
        self.turn += 1
        resting = [s for s in plan.shares if s.offer is None and s.tokens == 1 and s.request.order % 2 == self.turn % 2]
        plan.shares = [share for share in plan.shares if share not in resting] or resting
        plan.stable = False
        return plan


def talk(seed: int, conversations: int = 6) -> ToyWorkload:
    random = np.random.default_rng(seed)
    turns = [
        [(random.integers(0, 9, random.integers(1, 12)).tolist(), int(random.integers(1, 14))) for _ in range(3)]
        for _ in range(conversations)
    ]
    return ToyWorkload(turns, gap_s=0.01)


@pytest.mark.parametrize("prefetch", [PrefixCache(), RecomputeHoles()], ids=lambda policy: policy.name)
@pytest.mark.parametrize("policy", [OneByOne, EveryOther])
@pytest.mark.parametrize("seed", range(3))
def test_shares_of_single_requests_are_kept_to(policy: type[Chunked], prefetch: object, seed: int) -> None:
    workload = talk(seed)
    pages = -(-workload.longest() // 2) + 12
    run = serve(workload, pages, 2, eviction=LRU(), prefetch=prefetch, scheduling=policy(16, 8))
    assert run.recording.outputs() == workload.expected()


@pytest.mark.parametrize("seed", range(3))
def test_one_by_one_is_all_at_once(seed: int) -> None:
    workload = talk(seed)
    pages = -(-workload.longest() // 2) + 8  # so few that requests are suspended

    def steps(scheduling: Scheduling) -> list[object]:
        run = serve(workload, pages, 2, eviction=LRU(), prefetch=PrefixCache(), scheduling=scheduling)
        times = [[time_s for time_s, _ in request.token_times] for request in run.recording.requests]
        return [run.engine.suspensions, times, [step.device_pages for step in run.recording.steps]]

    assert steps(OneByOne(16, 8)) == steps(Chunked(16, 8))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.booleans()), max_size=6), st.integers(0, 99))
def test_shared_times_are_as_good_as_own_ones(stays: list[tuple[int, int, bool]], seed: int) -> None:
    random = np.random.default_rng(seed)
    ticks, ends, now_s = Ticks(), [], 1.0
    for _ in range(20):
        now_s += float(random.integers(1, 5))
        ends.append((now_s, int(random.integers(1, 4))))
    shared, own = TokenGaps(), TokenGaps()
    requests = [TokenTimes([(0.5, 1)]) for _ in stays]
    for index, (end_s, tokens) in enumerate(ends):
        ticks.append(end_s, tokens)
        for request, (first, length, _) in zip(requests, stays, strict=True):
            if index == first + length - 1:
                request.share(ticks, first)
                request.append((end_s + 0.25, 1))
    for number, (request, (first, length, keep)) in enumerate(zip(requests, stays, strict=True)):
        pairs = [(0.5, 1), *ends[first : first + length], (ends[first + length - 1][0] + 0.25, 1)]
        assert list(request) == pairs and len(request) == len(pairs)
        tokens = sum(count for _, count in pairs)
        shared.add(number, request, tokens, keep)
        own.add(number, pairs, tokens, keep)
    assert shared.mistimed == own.mistimed == []
    assert shared.count == own.count
    assert shared.mean_s == pytest.approx(own.mean_s) and shared.max_s == own.max_s
    sorted_of = [sorted(np.repeat(*gaps.weighted()).tolist()) for gaps in (shared, own)]
    assert sorted_of[0] == pytest.approx(sorted_of[1])


def test_a_wrong_number_of_shared_tokens_is_found() -> None:
    ticks, gaps = Ticks(), TokenGaps()
    for end_s in (1.0, 2.0, 3.0):
        ticks.append(end_s, 2)
    times = TokenTimes([(0.5, 1)])
    times.share(ticks, 0)
    gaps.add(3, times, 8)
    assert len(gaps.mistimed) == 1 and "request 3" in gaps.mistimed[0]
