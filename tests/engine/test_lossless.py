"""The most important test: whatever is evicted or suspended, the tokens are those of a model without a cache."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kvarena.framework.policy import Eviction, Prefetch, Scheduling
from kvarena.policies.eviction.arc import ARC
from kvarena.policies.eviction.belady import Belady
from kvarena.policies.eviction.fifo import FIFO
from kvarena.policies.eviction.lfu import LFU
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.eviction.s3fifo import S3FIFO
from kvarena.policies.prefetch.holes import RecomputeHoles
from kvarena.policies.prefetch.none import NoReuse
from kvarena.policies.prefetch.prefix import PrefixCache
from kvarena.policies.scheduling.chunked import Chunked
from kvarena.policies.scheduling.prefill_first import PrefillFirst
from kvarena.policies.scheduling.unified import Unified

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyWorkload, serve

EVICTIONS: list[type[Eviction]] = [LRU, FIFO, LFU, S3FIFO, ARC, Belady]
PREFETCHES: list[type[Prefetch]] = [NoReuse, PrefixCache, RecomputeHoles]
SCHEDULERS: list[Scheduling] = [
    Chunked(max_batched_tokens=7, max_running=5),
    Chunked(),
    PrefillFirst(max_batched_tokens=16, max_running=5),
    Unified(max_running=5),
]


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


@pytest.mark.parametrize("prefetch", PREFETCHES)
@pytest.mark.parametrize("scheduling", SCHEDULERS, ids=lambda policy: f"{policy.name}-{policy.max_batched_tokens}")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=PHASES)
@given(workload=workloads(), eviction=st.sampled_from(EVICTIONS), page_size=st.integers(1, 6))
def test_tokens_do_not_depend_on_memory(
    prefetch: type[Prefetch], scheduling: Scheduling, workload: ToyWorkload, eviction: type[Eviction], page_size: int
) -> None:
    pages = max(-(-workload.longest() // page_size) + 1, workload.total() // (10 * page_size))
    run = serve(workload, pages, page_size, eviction=eviction(), prefetch=prefetch(), scheduling=scheduling)
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
        prefetch: serve(
            workload, 64, 4, eviction=LRU(), prefetch=prefetch(), scheduling=Chunked()
        ).executor.computed_tokens
        for prefetch in PREFETCHES
    }
    assert computed[RecomputeHoles] < computed[PrefixCache] < computed[NoReuse]
    assert computed[RecomputeHoles] == workload.total() - 1
