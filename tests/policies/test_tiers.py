"""Policies on a store of several tiers: what lies where, and that any of them may be combined."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvarena.framework.admission import check_loads, check_plan, used_tokens
from kvarena.framework.memory import PageStore
from kvarena.framework.policy import Eviction, Prefetch, RunView, Tier, Writeback
from kvarena.framework.registry import Registry
from kvarena.framework.workloads.tokens import IdLog
from kvarena.policies.eviction.arc import ARC
from kvarena.policies.eviction.lookahead import LookAhead
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.eviction.retention import RetentionValue
from kvarena.policies.eviction.s3fifo import S3FIFO
from kvarena.policies.prefetch.holes import RecomputeHoles
from kvarena.policies.prefetch.layerwise import LayerwisePreloading
from kvarena.policies.prefetch.prefix import PrefixCache
from kvarena.policies.writeback.ahead_of_time import AheadOfTime
from kvarena.policies.writeback.on_evict import OnEvict
from kvarena.policies.writeback.save_layerwise import SaveLayerwise
from kvarena.policies.writeback.write_through import WriteThrough

sys.path.insert(0, str(Path(__file__).parent))
from fakes import FakeRequest, Linear

REGISTRY = Registry.discover()
PAGE = 4
DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK


class Nobody:
    """A future in which conversations come back by turns."""

    def next_use(self, run: RunView) -> float:
        return 100.0 + run.conversation


class Server:
    """Serves one request after another on a store alone: what is loaded or computed is there at once."""

    def __init__(
        self, eviction: Any, writeback: Writeback, prefetch: Prefetch, capacity: Mapping[Tier, int], shared: int = 8
    ) -> None:
        self.prefetch, self.costs, self.shared = prefetch, Linear(1.0, 0.1), shared
        evictions: dict[Tier, Eviction] = {tier: eviction() for tier in capacity}
        self.store = PageStore(
            PAGE,
            capacity,
            evictions,
            costs=self.costs,
            writeback=writeback,
            leaves_only=not prefetch.holes,
            future=Nobody(),
        )
        self.computed = 0

    def serve(self, conversation: int, tokens: int) -> None:
        """A request of ``tokens`` tokens; its context is always the same."""
        store, log = self.store, self.context(conversation, tokens)
        store.pages.moment.now_s += 1.0
        match = store.lookup(log, tokens, conversation)
        request = FakeRequest(conversation, tokens)
        plan = self.prefetch.restore(request, match.residency, self.costs)
        check_plan(plan, tokens, self.prefetch.name)
        check_loads(plan, match.residency, self.prefetch.name)
        lease = store.acquire(match, used_tokens(plan), conversation, log.page_keys(PAGE, tokens))
        store.room.make(DEVICE, store.pages_wanted(lease, [(r.start, r.stop) for r in plan.ranges]))
        for part in plan.ranges:
            if part.action == "load":
                store.load(lease, part.start, part.stop, part.tier, request.id)
        store.loaded(lease)
        for part in plan.ranges:
            if part.action == "recompute":
                store.extend(lease, part.start, part.stop)
                self.computed += part.stop - part.start
        store.publish(lease, log, tokens)
        store.release(lease, log, tokens, self.prefetch.reuses)
        store.copy_ahead()
        store.outbox.take()
        store.check()

    def layout(self, conversation: int, tokens: int) -> str:
        """Per page: ``.`` nowhere, else the tiers that hold it."""
        spans = self.store.lookup(self.context(conversation, tokens), tokens, conversation).residency.spans
        pages = [["".join(str(int(t)) for t in s.tiers) or "."] * (-(-(s.stop - s.start) // PAGE)) for s in spans]
        return " ".join(page for row in pages for page in row)

    def context(self, conversation: int, tokens: int) -> IdLog:
        """The first ``shared`` tokens are everybody's."""
        own = np.arange(tokens, dtype=np.int32) + 1000 * (conversation + 1)
        own[: self.shared] = np.arange(self.shared)[:tokens]
        return IdLog(own)


def test_pensieves_row_is_dropped_host_device() -> None:
    """Chunks of a page. The second conversation pushes the first one's leading pages down, a third pushes them out.

    By hand: page p costs 4.6 + 1.6 p. When the third arrives, the first has been idle for 4 ticks and the second for 2:
    the device gives up the second's page 0 (2.3), then 4 (2.75) of the first, 1 (3.1) and 5 (3.15), and the host drops
    pages 0, 1 and 2 of the first (1.15, 1.55, 1.95) and, for the last, the second's page 0 again (2.3 against 2.35).
    """
    tiers = {DEVICE: 12, HOST: 4}
    server = Server(lambda: RetentionValue(4, 4096), OnEvict(), RecomputeHoles(), tiers, shared=0)
    server.serve(0, 40)
    server.serve(1, 24)
    assert server.layout(0, 40) == "1 1 1 1 0 0 0 0 0 0"
    server.serve(2, 16)
    assert server.layout(0, 40) == ". . . 1 1 1 0 0 0 0"
    assert server.layout(1, 24) == ". 1 0 0 0 0"
    before = server.computed
    server.serve(0, 43)
    assert server.computed - before == 12 + 3
    assert server.layout(0, 43) == "0 0 0 01 01 01 0 0 0 0 0"


def test_ahead_of_time_copies_what_would_leave_next_and_keeps_it_until_needed() -> None:
    server = Server(lambda: RetentionValue(4, 4096), AheadOfTime(0.25, 4), RecomputeHoles(), {DEVICE: 16, HOST: 16})
    server.serve(0, 48)
    assert server.layout(0, 48) == " ".join(["0"] * 12)
    server.serve(1, 16)
    assert server.layout(0, 48).split().count("01") == 2
    assert server.store.device.free_pages + server.store.device.spare_pages == 4
    used = server.store.device.used_pages
    server.serve(2, 12)
    assert server.store.device.used_pages == used + 1


def test_write_through_drops_for_nothing_and_keeps_the_copy() -> None:
    server = Server(LRU, WriteThrough(), PrefixCache(), {DEVICE: 8, HOST: 16})
    server.serve(0, 24)
    assert server.layout(0, 24) == "01 01 01 01 01 01"
    server.serve(1, 28)
    assert server.layout(0, 24) == "01 01 01 1 1 1"
    selective = Server(LRU, WriteThrough(min_uses=2), PrefixCache(), {DEVICE: 8, HOST: 16})
    selective.serve(0, 24)
    assert selective.layout(0, 24) == "0 0 0 0 0 0"
    selective.serve(0, 28)
    assert selective.layout(0, 28) == "01 01 01 01 01 01 0"


def test_cachedattention_keeps_the_device_for_running_requests_and_moves_whole_sessions() -> None:
    tiers = {DEVICE: 16, HOST: 16, DISK: 32}
    server = Server(LookAhead, SaveLayerwise(free_share=0.0), LayerwisePreloading(), tiers)
    server.serve(0, 40)
    assert server.store.device.used_pages == 0
    assert server.layout(0, 40) == " ".join(["1"] * 10)
    server.serve(1, 36)
    assert server.layout(0, 40) == " ".join(["1"] * 2 + ["2"] * 8)
    server.serve(0, 44)
    assert server.layout(0, 44) == "1 1 2 2 2 2 2 2 2 2 1"
    assert server.store.device.used_pages == 0


def test_the_host_keeps_its_free_share() -> None:
    server = Server(LRU, SaveLayerwise(free_share=0.25), LayerwisePreloading(), {DEVICE: 16, HOST: 16, DISK: 32})
    for conversation in range(4):
        server.serve(conversation, 32)
        host = server.store.pools[HOST]
        assert host.free_pages + host.spare_pages >= 4


@pytest.mark.parametrize("policy", [ARC, S3FIFO], ids=["arc", "s3fifo"])
def test_ghosts_and_residents_stay_apart_where_pages_were_given_up_and_used_again(policy: type[ARC | S3FIFO]) -> None:
    server = Server(policy, AheadOfTime(0.5, 4), PrefixCache(), {DEVICE: 12, HOST: 12})
    for conversation in (0, 1, 0, 2, 1, 0, 3, 0, 1):
        server.serve(conversation, 24)
        eviction: Any = server.store.device.eviction
        ghosts = [eviction._ghost] if policy is S3FIFO else [eviction._b1, eviction._b2]
        queues = [eviction._small, eviction._main] if policy is S3FIFO else [eviction._t1, eviction._t2]
        held = [run for run in server.store.tree.root.below() if any(run in queue for queue in queues)]
        keys = {key for run in held for key in run.keys.tolist()}
        assert not any(keys & ghost.keys() for ghost in ghosts)
        assert sum(run.pages for run in held) == sum(queue.pages for queue in queues)
        in_order = server.store.device.used_pages - server.store.device.spare_pages
        assert in_order == sum(run.pages for run in held)


COMBINATIONS = st.tuples(
    st.sampled_from(REGISTRY.names("eviction")),
    st.sampled_from(REGISTRY.names("writeback")),
    st.sampled_from([name for name in REGISTRY.names("prefetch") if name != "none"]),
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    names=COMBINATIONS,
    tiers=st.sampled_from([(DEVICE,), (DEVICE, HOST), (DEVICE, DISK), (DEVICE, HOST, DISK)]),
    lower=st.integers(1, 20),
    requests=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 40)), min_size=2, max_size=25),
)
def test_any_policies_keep_any_hierarchy_consistent(
    names: tuple[str, str, str], tiers: tuple[Tier, ...], lower: int, requests: list[tuple[int, int]]
) -> None:
    eviction, writeback, prefetch = names
    capacity = {tier: 11 if tier is DEVICE else lower for tier in tiers}
    server = Server(
        lambda: REGISTRY.build("eviction", eviction, {}),
        REGISTRY.build("writeback", writeback, {}),  # type: ignore[arg-type]
        REGISTRY.build("prefetch", prefetch, {}),  # type: ignore[arg-type]
        capacity,
    )
    for conversation, tokens in requests:
        server.serve(conversation, tokens)
