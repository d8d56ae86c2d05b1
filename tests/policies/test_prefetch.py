"""Restore plans: golden layouts, windows and buffers, and validity over random residencies."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvarena.framework.admission import check_loads, check_plan
from kvarena.framework.policy import Prefetch, Range, Residency, RestorePlan, Span, Tier
from kvarena.framework.registry import Registry
from kvarena.policies.prefetch.bidirectional import Bidirectional
from kvarena.policies.prefetch.hicache import HiCache
from kvarena.policies.prefetch.holes import RecomputeHoles
from kvarena.policies.prefetch.layerwise import LayerwisePreloading
from kvarena.policies.prefetch.prefix import PrefixCache

sys.path.insert(0, str(Path(__file__).parent))
from fakes import FakeQueue, FakeRequest, FakeTier, Linear, waiting

DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK
PAGE = 4


def residency(*parts: tuple[int, tuple[Tier, ...]]) -> Residency:
    """Spans of so many tokens each."""
    spans, start = [], 0
    for tokens, tiers in parts:
        spans.append(Span(start, start + tokens, tiers))
        start += tokens
    return Residency(tuple(spans), PAGE)


def restore(policy: Prefetch, known: int, held: Residency, costs: Linear | None = None) -> RestorePlan:
    costs = costs or Linear()
    plan = policy.restore(FakeRequest(known_tokens=known), held, costs)
    check_plan(plan, known, policy.name)
    check_loads(plan, held, policy.name)
    return plan


def text(plan: RestorePlan) -> str:
    """``load:host 0-8, recompute 8-10``."""
    return ", ".join(
        f"{part.action}{':' + part.tier.name.lower() if part.action == 'load' else ''} {part.start}-{part.stop}"
        for part in plan.ranges
    )


PENSIEVE = residency((8, ()), (12, (HOST,)), (14, (DEVICE, HOST)))  # the last page holds two tokens


def test_pensieves_layout_dropped_host_device_new() -> None:
    plan = restore(RecomputeHoles(), 40, PENSIEVE)
    assert text(plan) == "recompute 0-8, load:host 8-20, use 20-34, recompute 34-40"
    assert plan.loading == "layers"
    assert not plan.deferred


def test_prefix_systems_use_nothing_behind_a_hole() -> None:
    for policy in (PrefixCache(), LayerwisePreloading(), HiCache()):
        assert text(restore(policy, 40, PENSIEVE)) == "recompute 0-40", policy.name


MIXED = residency((8, (DEVICE, HOST)), (8, (HOST, DISK)), (8, (DISK,)), (6, (HOST,)))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (PrefixCache(), "use 0-8, load:host 8-16, load:disk 16-24, load:host 24-28, recompute 28-40"),
        (RecomputeHoles(), "use 0-8, load:host 8-16, load:disk 16-24, load:host 24-30, recompute 30-40"),
        (LayerwisePreloading(), "use 0-8, load:host 8-16, load:disk 16-24, load:host 24-30, recompute 30-40"),
        (HiCache(load_back_tokens=8), "use 0-8, load:host 8-16, recompute 16-40"),
        (HiCache(load_back_tokens=9), "use 0-8, recompute 8-40"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_nearest_copy_is_taken(policy: Prefetch, expected: str) -> None:
    """Page systems end at full pages, token systems take the partial last page; HiCache never reads the disk itself."""
    assert text(restore(policy, 40, MIXED)) == expected


def test_how_loads_overlap() -> None:
    host = residency((16, (HOST,)))
    assert restore(PrefixCache(), 20, host).deferred
    assert not restore(PrefixCache(loading="layers"), 20, host).deferred
    assert restore(RecomputeHoles(loading="blocking"), 20, host).loading == "blocking"
    assert restore(RecomputeHoles(), 20, residency((16, (DISK,)))).deferred


@pytest.mark.parametrize(
    ("tier", "policy", "expected"),
    [
        (DEVICE, PrefixCache(), "use 0-12, recompute 12-16"),
        (DEVICE, RecomputeHoles(), "use 0-15, recompute 15-16"),
        (HOST, PrefixCache(), "load:host 0-12, recompute 12-16"),
        (HOST, RecomputeHoles(), "load:host 0-12, recompute 12-16"),
        (HOST, LayerwisePreloading(), "load:host 0-12, recompute 12-16"),
    ],
)
def test_the_last_token_is_computed_where_all_is_stored(tier: Tier, policy: Prefetch, expected: str) -> None:
    """A used page is used as far as that token; a load does not end inside a page."""
    assert text(restore(policy, 16, residency((16, (tier,))))) == expected


SPANS = st.lists(
    st.tuples(st.integers(1, 5), st.lists(st.sampled_from([DEVICE, HOST, DISK]), unique=True).map(tuple)), max_size=7
)
POLICIES = [
    Registry.discover().build("prefetch", name, {}) for name in Registry.discover().names("prefetch") if name != "none"
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@given(parts=SPANS, tail=st.integers(0, PAGE - 1), new=st.integers(0, 30), slope=st.sampled_from([0.0, 0.01, 1.0]))
def test_every_plan_is_valid(policy: Prefetch, parts: list[tuple], tail: int, new: int, slope: float) -> None:
    spans = [(pages * PAGE, tiers) for pages, tiers in parts]
    if tail:
        spans.append((tail, (HOST,)))
    held = residency(*spans)
    known = max(held.tokens + new, 1)
    plan = restore(policy, known, held, Linear(slope_s=slope))
    for part in plan.ranges:
        if part.action == "load":
            assert part.start % PAGE == 0
            assert part.stop % PAGE == 0 or part.stop == held.tokens
        if part.action == "use":
            assert part.start % PAGE == 0
            assert part.stop % PAGE == 0 or part.stop in (held.tokens, known - 1)
    if not policy.holes:
        actions = [part.action for part in plan.ranges]
        assert "recompute" not in actions[:-1]
    neighbours = zip(plan.ranges, plan.ranges[1:], strict=False)
    assert all((a.action, a.tier) != (b.action, b.tier) for a, b in neighbours)


# --- CachedAttention --------------------------------------------------------------------------------------------------


def test_the_read_buffer_is_the_papers_formula() -> None:
    """Section 3.2.1's figures for LLaMA-65B: 1,000 tokens load in 94 ms, 100 compute in 18 ms: 2.0 of 2.5 GB ahead."""
    policy = LayerwisePreloading()
    assert policy.early_layers(80, 0.094, 0.018) == math.ceil(80 * (94 - 18) / 94) == 65
    assert policy.early_layers(80, 0.018, 0.094) == 0
    assert LayerwisePreloading(buffer_layers=15).early_layers(80, 0.094, 0.018) == 15
    assert LayerwisePreloading(buffer_layers=15).early_layers(12, 0.094, 0.018) == 12
    assert LayerwisePreloading(loading="blocking").early_layers(80, 0.094, 0.018) == 0
    assert RecomputeHoles().early_layers(80, 0.094, 0.018) == 0


@pytest.mark.parametrize(
    ("tokens", "window"),
    [([40, 40, 40, 40], 2), ([20, 20, 20, 20, 20, 20], 5), ([101, 1], 0), ([60, 40, 1], 2), ([], 0)],
)
def test_the_prefetch_window_is_memory_over_mean_session(tokens: list[int], window: int) -> None:
    """L_pw = C_mem / S_kv with 25 pages of 4 tokens in the host."""
    queue, host = FakeQueue(waiting(tokens)), FakeTier(HOST, capacity=25, page_size=4)
    assert [request.id for request in LayerwisePreloading(host_share=1.0).ahead(queue, host)] == list(range(window))
    assert list(LayerwisePreloading(fetches_ahead=False).ahead(queue, host)) == []
    assert len(list(LayerwisePreloading(max_window=1, host_share=1.0).ahead(queue, host))) == min(window, 1)


# --- HiCache ----------------------------------------------------------------------------------------------------------


def test_hicaches_stop_rules() -> None:
    assert HiCache(stop="best_effort").patience_s(4096) == 0.0
    assert HiCache(stop="wait_complete").patience_s(4096) == math.inf
    assert HiCache().patience_s(4096) == 1.0 + 0.25 * 4
    assert PrefixCache().patience_s(4096) == math.inf


def test_hicache_fetches_more_than_256_tokens() -> None:
    queue, host = FakeQueue(waiting([300, 256, 257, 9])), FakeTier(HOST)
    assert [request.id for request in HiCache().ahead(queue, host)] == [0, 2]
    assert [request.id for request in HiCache(max_window=2).ahead(queue, host)] == [0]
    assert not HiCache().fetches(256)
    assert HiCache().fetches(257)


# --- Cake -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("costs", "new", "expected"),
    [
        (Linear(1.0, 0.0, 1.0), 1, "recompute 0-20, load:host 20-40, recompute 40-41"),  # as fast: half each
        (Linear(1.0, 0.0, 3.0), 1, "recompute 0-32, load:host 32-40, recompute 40-41"),
        (Linear(1.0, 0.0, 0.25), 9, "load:host 0-40, recompute 40-49"),  # the prompt takes longer than all loads
        (Linear(1.0, 0.0, 1000.0), 1, "recompute 0-41"),
    ],
)
def test_computing_and_loading_meet(costs: Linear, new: int, expected: str) -> None:
    assert text(restore(Bidirectional(), 40 + new, residency((40, (HOST,))), costs)) == expected


def test_what_is_on_the_device_is_used_wherever_the_two_meet() -> None:
    held = residency((8, (HOST,)), (8, (DEVICE,)), (24, (HOST,)))
    plan = restore(Bidirectional(), 41, held, Linear(1.0, 0.0, 1.0))
    assert text(plan) == "recompute 0-8, use 8-16, recompute 16-24, load:host 24-40, recompute 40-41"


@given(parts=SPANS, new=st.integers(1, 12), slope=st.sampled_from([0.0, 0.02]), host_s=st.sampled_from([0.3, 1.0, 4.0]))
def test_no_other_meeting_point_is_better(parts: list[tuple], new: int, slope: float, host_s: float) -> None:
    held = residency(*[(pages * PAGE, tiers) for pages, tiers in parts])
    known, costs = held.tokens + new, Linear(1.0, slope, host_s, 3 * host_s)

    def cost(plan: RestorePlan) -> float:
        loads = [part for part in plan.ranges if part.action == "load"]
        load_s = sum(costs.load_s(part.stop - part.start, part.tier) for part in loads)
        return max(load_s, sum(costs.recompute_s(p.start, p.stop) for p in plan.ranges if p.action == "recompute"))

    def meeting_at(token: int) -> RestorePlan:
        spans = [(span, Tier(min(span.tiers)) if span.tiers else None) for span in held.spans]
        ranges = []
        for span, tier in spans:
            for start in range(span.start, span.stop, PAGE):
                compute = tier is None or (tier is not DEVICE and start < token)
                action = "recompute" if compute else "use" if tier is DEVICE else "load"
                ranges.append(Range(start, start + PAGE, action, tier or DEVICE))  # type: ignore[arg-type]
        return RestorePlan((*ranges, Range(held.tokens, known, "recompute")))

    found = cost(restore(Bidirectional(), known, held, costs))
    best = min(cost(meeting_at(token)) for token in range(0, held.tokens + 1, PAGE))
    assert found == pytest.approx(best)
