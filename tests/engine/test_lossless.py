"""The most important test: whatever is evicted or suspended, the tokens are those of a model without a cache."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kvarena.framework.policy import Scheduling
from kvarena.framework.registry import Registry
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.scheduling.chunked import Chunked
from kvarena.policies.scheduling.longest_prefix import LongestPrefix
from kvarena.policies.scheduling.prefill_first import PrefillFirst
from kvarena.policies.scheduling.unified import Unified

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyWorkload, serve

REGISTRY = Registry.discover()


def lossless(family: str) -> list[str]:
    """The registered policies of ``family`` that promise the same tokens."""
    return [name for name in REGISTRY.names(family) if REGISTRY.build(family, name, {}).lossless]


def make(family: str, name: str) -> Any:
    """The policy with its defaults."""
    return REGISTRY.build(family, name, {})


SCHEDULERS: list[Scheduling] = [
    Chunked(max_batched_tokens=7, max_running=5),
    Chunked(),
    PrefillFirst(max_batched_tokens=16, max_running=5),
    Unified(max_running=5),
    LongestPrefix(max_batched_tokens=16, max_running=5),
]
assert {policy.name for policy in SCHEDULERS} == set(lossless("scheduling"))


@st.composite
def workloads(draw: st.DrawFn) -> ToyWorkload:
    shared = draw(st.lists(st.integers(0, 5), max_size=9))
    prompt = st.lists(st.integers(0, 5), min_size=1, max_size=8)
    turn = st.tuples(prompt, st.integers(1, 8))
    conversations = draw(st.lists(st.lists(turn, min_size=1, max_size=4), min_size=2, max_size=8))
    turns = [[(shared + first, tokens), *rest] for (first, tokens), *rest in conversations]
    return ToyWorkload(turns, draw(st.sampled_from([0.0, 0.05, 1.0])), draw(st.sampled_from([0.0, 0.02, 0.5])))


# No shrinking: a failing example is small enough to read, and shrinking a whole run takes minutes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)

seen: Counter[str] = Counter()


@pytest.mark.parametrize("prefetch", lossless("prefetch"))
@pytest.mark.parametrize("scheduling", SCHEDULERS, ids=lambda policy: f"{policy.name}-{policy.max_batched_tokens}")
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=PHASES)
@given(workload=workloads(), eviction=st.sampled_from(lossless("eviction")), page_size=st.integers(1, 6))
def test_tokens_do_not_depend_on_memory(
    prefetch: str, scheduling: Scheduling, workload: ToyWorkload, eviction: str, page_size: int
) -> None:
    pages = max(-(-workload.longest() // page_size) + 1, workload.total() // (10 * page_size))
    policies = {"eviction": make("eviction", eviction), "prefetch": make("prefetch", prefetch)}
    run = serve(workload, pages, page_size, **policies, scheduling=scheduling)
    assert run.recording.outputs() == workload.expected()
    assert run.engine.store.available() == pages
    for record in run.recording.requests:
        reused = record.reused_device + record.reused_host + record.reused_disk + record.reused_remote
        assert reused + record.recomputed + record.dropped == record.reusable_tokens
    seen["evicted"] += run.engine.store.device.evicted_pages
    seen["suspended"] += run.engine.suspensions


def test_pages_were_evicted_and_requests_suspended() -> None:
    assert seen["evicted"] > 100, seen
    assert seen["suspended"] > 20, seen


def test_state_saves_computing() -> None:
    workload = ToyWorkload([[([1, 2, 3, 4, 5], 6), ([6, 7], 6), ([8], 4)]])
    computed = {
        name: serve(
            workload, 64, 4, eviction=LRU(), prefetch=make("prefetch", name), scheduling=Chunked()
        ).executor.computed_tokens
        for name in ("none", "prefix", "holes")
    }
    assert computed["holes"] < computed["prefix"] < computed["none"]
    assert computed["holes"] == workload.total() - 1
