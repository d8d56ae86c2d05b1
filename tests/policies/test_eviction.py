"""Every eviction policy against its textbook, block by block, and with runs against pages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvarena.framework.memory import PageStore
from kvarena.framework.policy import Eviction, RunView, Tier
from kvarena.framework.workloads.tokens import IdLog
from kvarena.policies.eviction.arc import ARC
from kvarena.policies.eviction.belady import Belady
from kvarena.policies.eviction.fifo import FIFO
from kvarena.policies.eviction.gdsf import GDSF
from kvarena.policies.eviction.lfu import LFU
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.eviction.s3fifo import S3FIFO
from kvarena.policies.eviction.slru import SLRU
from kvarena.policies.eviction.ttl import TTL
from kvarena.policies.writeback.none import NoWriteback

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))
import reference
from toy import ToyCosts

CAPACITIES = (5, 20, 50, 120, 200)


def zipf_trace(length: int = 2000, blocks: int = 250, seed: int = 1) -> list[int]:
    """Skewed popularity that drifts, with a scan every 400 accesses."""
    random = np.random.default_rng(seed)
    popular = np.minimum(random.zipf(1.2, length), blocks) + np.arange(length) // 500
    scan = np.arange(length) % 400 < 40
    return [int(block) for block in np.where(scan, 1000 + np.arange(length) % 400, popular)]


class NextUse:
    """The future of a trace of single blocks."""

    def __init__(self, trace: list[int]) -> None:
        self.uses: dict[int, list[int]] = {}
        for index, block in enumerate(trace):
            self.uses.setdefault(block, []).append(index)

    def next_use(self, run: RunView) -> float:
        uses = self.uses[run.conversation]
        return uses[0] if uses else float("inf")


def make_store(policy: Eviction, capacity: int, **given: Any) -> PageStore:
    tier = Tier.DEVICE
    return PageStore(1, {tier: capacity}, {tier: policy}, costs=ToyCosts(), writeback=NoWriteback(), **given)


def replay(policy: Eviction, trace: list[int], capacity: int) -> int:
    """Hits of ``policy`` when the blocks of ``trace`` are asked for one after another, each a request of one page."""
    future = NextUse(trace)
    store = make_store(policy, capacity, leaves_only=False, future=future)
    hits = 0
    for second, block in enumerate(trace):
        store.pages.moment.now_s = float(second)
        future.uses[block].pop(0)
        log = IdLog(np.array([block], dtype=np.int32))
        match = store.lookup(log, 1, block)
        found = match.residency.leading(Tier.DEVICE)
        hits += found
        lease = store.acquire(match, found, block, log.page_keys(1, 1))
        store.extend(lease, found, 1)
        store.publish(lease, log, 1)
        store.release(lease, log, 1, "pages")
    store.check()
    return hits


PAIRS: list[tuple[Callable[[], Eviction], reference.Cache]] = [
    (LRU, reference.lru),
    (FIFO, reference.fifo),
    (LFU, reference.lfu),
    (S3FIFO, reference.s3fifo),
    (ARC, reference.arc),
    (Belady, reference.belady),
    (SLRU, reference.slru),
    (GDSF, reference.gdsf),
    (partial(TTL, 60.0), partial(reference.ttl, ttl_s=60.0)),
]
IDS = [policy().name for policy, _ in PAIRS]


@pytest.mark.parametrize(("policy", "textbook"), PAIRS, ids=IDS)
def test_hits_equal_the_textbook(policy: Callable[[], Eviction], textbook: reference.Cache) -> None:
    trace = zipf_trace()
    found = {capacity: replay(policy(), trace, capacity) for capacity in CAPACITIES}
    assert found == {capacity: textbook(trace, capacity) for capacity in CAPACITIES}
    assert len(set(found.values())) == len(CAPACITIES)


@pytest.mark.parametrize(("policy", "textbook"), PAIRS, ids=IDS)
@settings(max_examples=60, deadline=None)
@given(trace=st.lists(st.integers(0, 11), min_size=20, max_size=120), capacity=st.integers(1, 9))
def test_any_trace_equals_the_textbook(
    policy: Callable[[], Eviction], textbook: reference.Cache, trace: list[int], capacity: int
) -> None:
    assert replay(policy(), trace, capacity) == textbook(trace, capacity)


def test_belady_is_never_beaten_and_policies_differ() -> None:
    trace = zipf_trace(seed=2)
    hits = {policy().name: tuple(replay(policy(), trace, size) for size in (4, 20)) for policy, _ in PAIRS}
    assert all(best >= other for row in hits.values() for best, other in zip(hits["belady"], row, strict=True))
    assert len(set(hits.values())) == len(hits), hits


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 7)), min_size=1, max_size=30),
    capacity=st.integers(8, 14),
)
def test_runs_of_lru_equal_pages(requests: list[tuple[int, int]], capacity: int) -> None:
    """Conversations of growing or shrinking length; the page-by-page list is vLLM's free queue."""
    store = make_store(LRU(), capacity)
    queue: list[tuple[int, int]] = []
    for conversation, length in requests:
        log = IdLog(np.arange(length, dtype=np.int32) + 100 * conversation)
        match = store.lookup(log, length, conversation)
        found = match.residency.leading(Tier.DEVICE)
        pages = [(conversation, page) for page in range(length)]
        leading = 0
        while leading < length and pages[leading] in queue:
            leading += 1
        assert found == leading
        queue = [page for page in queue if page not in pages[:leading]]
        lease = store.acquire(match, found, conversation, log.page_keys(1, length))
        store.extend(lease, found, length)
        while len(queue) + length > capacity:
            queue.pop(0)
        store.publish(lease, log, length)
        store.release(lease, log, length, "pages")
        queue += reversed(pages)
        assert store.device.used_pages == len(queue)
