"""Contexts longer than the device: what was foreseen of them, and what becomes of those that do not fit."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kvarena.framework.execution.contract import Batch, StepResult
from kvarena.framework.footprint import Footprint, Held, Window
from kvarena.framework.policy import Scheduling, Tier
from kvarena.policies.compression.kivi import Kivi
from kvarena.policies.compression.none import NoCompression

sys.path.insert(0, str(Path(__file__).parent))
from test_lossless import SCHEDULERS, make, workloads
from test_narrowed import FewTokens, NarrowingToy
from toy import ToyLinks, ToyWorkload, serve

seen: Counter[str] = Counter()


class Measuring(NarrowingToy):
    """Notes the most slots of any context."""

    most = 0

    def run(self, batch: Batch) -> StepResult:
        self.most = max([self.most, *[part.start + part.length for part in batch.segments]])
        return super().run(batch)


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    turns=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=4),
    scheduling=st.sampled_from(SCHEDULERS),
    page_size=st.integers(1, 6),
    policy=st.builds(FewTokens, st.integers(2, 20), st.booleans()),
)
def test_the_most_slots_are_foreseen(
    turns: list[tuple[int, int]], scheduling: Scheduling, page_size: int, policy: FewTokens
) -> None:
    workload = ToyWorkload([[(list(range(prompt)), reply) for prompt, reply in turns]])
    footprint = Footprint(policy, NoCompression(), 1.0, page_size, scheduling.chunk)
    window, held, most, new = Window(10**6, None, policy, footprint), Held(), 0, 0
    for prompt, reply in turns:
        needs = window.turn(held, new + prompt, reply - 1)  # a turn's last token is computed with the next prompt
        held, most, new = needs.held, max(most, needs.slots), 1
    executor = Measuring(200, page_size, policy, None)
    serve(
        workload,
        200,
        page_size,
        eviction=make("eviction", "lru"),
        prefetch=make("prefetch", "holes"),
        scheduling=scheduling,
        truncation=policy,
        executor=executor,
        footprint=footprint,
    )
    assert executor.most == most


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(
    workload=workloads(),
    scheduling=st.sampled_from(SCHEDULERS),
    page_size=st.integers(1, 6),
    host=st.sampled_from([0, 3, 40]),
    policy=st.builds(FewTokens, st.integers(2, 20), st.booleans()),
    share=st.floats(0.1, 1.0),
    seed=st.integers(0, 1 << 16),
    foreseen=st.booleans(),
)
def test_what_does_not_fit_fails_alone(
    workload: ToyWorkload,
    scheduling: Scheduling,
    page_size: int,
    host: int,
    policy: FewTokens,
    share: float,
    seed: int,
    foreseen: bool,
) -> None:
    pages = max(2, int(workload.longest() * share) // page_size)
    below = {Tier.HOST: host} if host else {}
    slots = {tier: np.full((count, page_size), -1, np.int64) for tier, count in {Tier.DEVICE: pages, **below}.items()}
    links = ToyLinks(slots, seed, 0.0) if below else None
    executor = NarrowingToy(pages, page_size, policy, links)
    run = serve(
        workload,
        pages,
        page_size,
        eviction=make("eviction", "lru"),
        prefetch=make("prefetch", "holes"),
        scheduling=scheduling,
        writeback=make("writeback", "ahead_of_time") if below else None,
        below=below,
        truncation=policy,
        executor=executor,
        links=links,
        footprint=Footprint(policy, NoCompression(), 1.0, page_size, scheduling.chunk) if foreseen else None,
    )
    store, records = run.engine.store, run.recording.requests
    assert not executor.known, "a context that has ended is remembered"
    assert all(store.available(tier) == pool.capacity for tier, pool in store.pools.items()), "a page is still held"
    assert len(records) == sum(len(turns) for turns in workload.turns)
    for record in records:
        seen[record.status.split(":")[0]] += 1
        seen["longer than the device"] += (
            record.status == "ok" and record.history_tokens + record.prompt_tokens > pages * page_size
        )
        seen["given up"] += "too few" in record.status or "lost" in record.status


def test_all_of_it_happened() -> None:
    assert min(seen[name] for name in ("ok", "failed", "skipped", "longer than the device", "given up")) > 0, seen


@pytest.mark.parametrize(("stage", "slots"), [("chunk", 100), ("prompt", 4 + 16 + 8), ("decode", 4 + 16 + 8)])
def test_packed_tokens_take_whole_pages(stage, slots):
    class Halves(Kivi):
        def packed_tokens(self, cached_tokens: int) -> int:
            return cached_tokens - 8

    footprint = Footprint(None, Halves(), 0.2, 4)
    after = footprint.after(Held.whole(100), stage)
    assert after == Held(100, 100.0, slots)
    assert footprint.resumed(100, slots) == Held(100, 100.0, slots)
