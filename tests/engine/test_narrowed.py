"""Contexts of which only some tokens are kept: what is in their pages, whatever the tiers do with them."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kvarena.framework.execution.contract import Batch, Segment, StepResult
from kvarena.framework.policy import CacheView, Scheduling, Stage, Tier, TokenTruncation

sys.path.insert(0, str(Path(__file__).parent))
from test_lossless import SCHEDULERS, lossless, make, workloads
from toy import ToyExecutor, ToyLinks, ToyWorkload, next_token, serve

seen: Counter[str] = Counter()


@dataclass
class FewTokens(TokenTruncation):
    """The first token and the last ``budget`` - 1 stay."""

    budget: int = 6
    between_chunks: bool = False

    def keep(self, view: CacheView) -> Any:
        raise AssertionError("the toy has no tensors")

    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Stage) -> float:
        chunk = stage == "chunk" and not self.between_chunks
        return cached_tokens if chunk else min(cached_tokens, self.budget)


class NarrowingToy(ToyExecutor):
    """Remembers what each context holds, and sees to it that its pages do."""

    def __init__(self, num_pages: int, page_size: int, policy: FewTokens, links: ToyLinks | None) -> None:
        super().__init__(num_pages, page_size, links)
        self.policy = policy
        self.known: dict[int, list[int]] = {}

    def run(self, batch: Batch) -> StepResult:
        for part in batch.segments:
            assert part.narrowing is not None
            assert part.start == len(self.known.get(part.narrowing.context, ())), "slots are missing"
        result = super().run(batch)
        fewer: dict[int, int] = {}
        for part in batch.segments:
            assert part.narrowing is not None
            held = self.known.setdefault(part.narrowing.context, [])
            new = part.log.ids(part.start, part.start + part.length).tolist()
            assert self._read(part) == [*held, *new], "a page does not hold what was kept in it"
            held += new
            kept = int(self.policy.kept_tokens(len(held), part.narrowing.tokens, part.narrowing.stage))
            if kept < len(held):
                held[:] = shortened(held, kept)
                self._put(part, held)
                fewer[part.narrowing.context] = kept
        result.slots = fewer
        return result

    def _put(self, part: Segment, held: list[int]) -> None:
        places = np.arange(len(held))
        self.slots[part.table[places // self.page_size], places % self.page_size] = held

    def forget(self, context: int) -> None:
        self.known.pop(context, None)


def shortened(held: list[int], kept: int) -> list[int]:
    return [*held[:1], *held[len(held) - kept + 1 :]]


def expected(workload: ToyWorkload, budget: int) -> dict[tuple[int, int], list[int]]:
    """What a cache says that is never lost."""
    outputs = {}
    for index, turns in enumerate(workload.turns):
        held: list[int] = []
        new: list[int] = []
        for turn, (prompt, tokens) in enumerate(turns):
            new = [*new, *prompt]
            reply: list[int] = []
            for _ in range(tokens):
                held += new
                reply.append(next_token(held))
                new = [reply[-1]]
                if len(held) > budget:
                    held = shortened(held, budget)
            outputs[index, turn] = reply
    return outputs


@st.composite
def memories(draw: st.DrawFn) -> tuple[int, dict[Tier, int]]:
    host, disk = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    below = {tier: pages for tier, pages in ((Tier.HOST, host), (Tier.DISK, disk)) if pages}
    return draw(st.sampled_from([1, 3, 10])), below


@pytest.mark.parametrize("prefetch", lossless("prefetch"))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(
    workload=workloads(),
    eviction=st.sampled_from(lossless("eviction")),
    writeback=st.sampled_from(lossless("writeback")),
    scheduling=st.sampled_from(SCHEDULERS),
    page_size=st.integers(1, 6),
    memory=memories(),
    policy=st.builds(FewTokens, st.integers(2, 20), st.booleans()),
    seed=st.integers(0, 1 << 16),
    fault_rate=st.sampled_from([0.0, 0.3]),
)
def test_pages_hold_what_was_kept(
    prefetch: str,
    workload: ToyWorkload,
    eviction: str,
    writeback: str,
    scheduling: Scheduling,
    page_size: int,
    memory: tuple[int, dict[Tier, int]],
    policy: FewTokens,
    seed: int,
    fault_rate: float,
) -> None:
    too_small, below = memory
    below = {} if writeback == "none" else below
    pages = max(-(-workload.longest() // page_size) + 1, workload.total() // (too_small * page_size))
    slots = {
        tier: np.full((count, page_size), -1, dtype=np.int64) for tier, count in {Tier.DEVICE: pages, **below}.items()
    }
    links = ToyLinks(slots, seed, fault_rate) if below else None
    executor = NarrowingToy(pages, page_size, policy, links)
    run = serve(
        workload,
        pages,
        page_size,
        eviction=make("eviction", eviction),
        prefetch=make("prefetch", prefetch),
        scheduling=scheduling,
        writeback=make("writeback", writeback),
        below=below,
        truncation=policy,
        executor=executor,
        links=links,
    )
    narrowed, store = run.engine.narrowed, run.engine.store
    assert not executor.known, "a context that has ended is remembered"
    assert all(store.available(tier) == pool.capacity for tier, pool in store.pools.items()), "a page is still held"
    for record in run.recording.requests:
        assert record.status == "ok"
        reused = record.reused_device + record.reused_host + record.reused_disk + record.reused_remote
        assert reused + record.recomputed + record.dropped == record.reusable_tokens
        seen["reused"] += reused > 0
        seen["from below"] += record.reused_host + record.reused_disk > 0
    if not narrowed.begun_anew and not policy.between_chunks:
        seen["kept throughout"] += narrowed.freed_tokens > 0
        assert run.recording.outputs() == expected(workload, policy.budget)
    seen["begun anew"] += narrowed.begun_anew > 0
    seen["pages freed"] += narrowed.freed_pages > 0
    seen["suspended"] += run.engine.suspensions > 0
    seen["faults"] += links.faults > 0 if links else 0


def test_all_of_it_happened() -> None:
    names = ("reused", "from below", "kept throughout", "begun anew", "pages freed", "suspended", "faults")
    assert min(seen[name] for name in names) > 0, seen
