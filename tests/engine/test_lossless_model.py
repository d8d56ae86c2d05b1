"""The same on a real model: under memory ten times too small the tokens are those of stateless serving."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kvarena.framework.execution.models import LoadedModel, load_model
from kvarena.framework.execution.torch_executor import TorchExecutor
from kvarena.framework.policy import Eviction, Prefetch, Scheduling
from kvarena.framework.registry import Registry
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.prefetch.none import NoReuse
from kvarena.policies.scheduling.chunked import Chunked
from kvarena.policies.scheduling.prefill_first import PrefillFirst
from kvarena.policies.scheduling.unified import Unified

sys.path.insert(0, str(Path(__file__).parent))
from small_model import KNOBS
from toy import Run, ToyWorkload, serve

SCHEDULERS: list[Scheduling] = [Chunked(24, 6), PrefillFirst(64, 6), Unified(64, 6)]
REGISTRY = Registry.discover()
seen: Counter[str] = Counter()


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(KNOBS, "cpu", 1)


@st.composite
def workloads(draw: st.DrawFn) -> ToyWorkload:
    seed = draw(st.integers(0, 1 << 16))
    ids = st.lists(st.integers(0, 96), min_size=1, max_size=24)
    turn = st.tuples(ids, st.integers(1, 12))
    turns = draw(st.lists(st.lists(turn, min_size=1, max_size=3), min_size=6, max_size=12))
    shared = [(seed + token) % 97 for token in range(draw(st.integers(0, 20)))]
    turns = [[(shared + first, tokens), *rest] for (first, tokens), *rest in turns]
    return ToyWorkload(turns, think_s=draw(st.sampled_from([0.0, 0.01])), gap_s=draw(st.sampled_from([0.0, 0.005])))


def run_on(model: LoadedModel, workload: ToyWorkload, pages: int, page_size: int, *policies: object) -> Run:
    eviction, prefetch, scheduling = policies
    executor = TorchExecutor(model, pages, page_size)
    return serve(
        workload, pages, page_size, eviction=eviction, prefetch=prefetch, scheduling=scheduling, executor=executor
    )


@pytest.mark.parametrize("scheduling", SCHEDULERS, ids=lambda policy: policy.name)
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(
    workload=workloads(),
    eviction=st.sampled_from(REGISTRY.names("eviction")).map(lambda name: REGISTRY.build("eviction", name, {})),
    prefetch=st.sampled_from(["prefix", "holes"]).map(lambda name: REGISTRY.build("prefetch", name, {})),
    page_size=st.sampled_from([1, 4, 5, 16]),
)
def test_tokens_equal_stateless_serving(
    model: LoadedModel,
    scheduling: Scheduling,
    workload: ToyWorkload,
    eviction: Eviction,
    prefetch: Prefetch,
    page_size: int,
) -> None:
    ample = -(-workload.total() // page_size) + len(workload) * 3
    small = max(-(-workload.longest() // page_size) + 1, workload.total() // (10 * page_size))
    expected = run_on(model, workload, ample, page_size, LRU(), NoReuse(), Chunked()).recording.outputs()
    run = run_on(model, workload, small, page_size, eviction, prefetch, scheduling)
    assert run.recording.outputs() == expected
    seen["evicted"] += run.engine.store.device.evicted_pages
    seen["suspended"] += run.engine.suspensions


def test_pages_were_evicted_and_requests_suspended() -> None:
    assert seen["evicted"] > 50, seen
    assert seen["suspended"] > 5, seen
