"""The page store under random use: invariants after every step, and what it finds is what was stored."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvarena.framework.memory import Lease, OutOfPages, PageStore
from kvarena.framework.policy import Tier, Victim
from kvarena.framework.workloads.tokens import IdLog
from kvarena.policies.eviction.arc import ARC
from kvarena.policies.eviction.fifo import FIFO
from kvarena.policies.eviction.lfu import LFU
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.eviction.retention import RetentionValue
from kvarena.policies.eviction.s3fifo import S3FIFO
from kvarena.policies.writeback.none import NoWriteback

sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))
from toy import ToyCosts


class HeadFirst(LRU):
    """Least recently used, but leading pages first."""

    def victims(self, need: int) -> Iterator[Victim]:
        return (replace(victim, end="head") for victim in super().victims(need))


def make_store(pages: int, page_size: int = 4, policy: type = LRU, *, leaves_only: bool = True) -> PageStore:
    return PageStore(
        page_size,
        {Tier.DEVICE: pages},
        {Tier.DEVICE: policy()},
        costs=ToyCosts(),
        writeback=NoWriteback(),
        leaves_only=leaves_only,
    )


POLICIES = [LRU, FIFO, LFU, S3FIFO, ARC, RetentionValue, HeadFirst]


def log_of(*ids: int) -> IdLog:
    return IdLog(np.array(ids, dtype=np.int32))


def serve(store: PageStore, log: IdLog, conversation: int, keep: str = "pages") -> int:
    """Store all tokens of ``log`` as one request would; returns how many were found resident."""
    match = store.lookup(log, len(log), conversation)
    found = match.residency.leading(Tier.DEVICE)
    lease = store.acquire(match, found, conversation, log.page_keys(store.page_size, len(log)))
    store.extend(lease, found, len(log))
    store.publish(lease, log, len(log))
    store.check()
    store.release(lease, log, len(log), keep)  # type: ignore[arg-type]
    store.check()
    return found


def test_equal_prefixes_are_shared_in_full_pages() -> None:
    store = make_store(16)
    assert serve(store, log_of(*range(10)), 0) == 0
    assert serve(store, log_of(*range(8), 99, 98), 1) == 8
    assert store.device.used_pages == 2
    assert serve(store, log_of(0, 1, 2, 3, 7, 7, 7, 7), 2) == 4


def test_partial_tails_belong_to_their_conversation() -> None:
    store = make_store(16)
    serve(store, log_of(*range(10)), 0, "tokens")
    assert store.lookup(log_of(*range(12)), 12, 0).residency.tokens == 10
    assert store.lookup(log_of(*range(12)), 12, 1).residency.tokens == 8
    assert store.lookup(log_of(*range(9), 50, 51), 11, 0).residency.tokens == 8


def test_a_tail_that_becomes_full_joins_the_chain() -> None:
    store = make_store(16)
    serve(store, log_of(*range(10)), 0, "tokens")
    assert serve(store, log_of(*range(13)), 0, "tokens") == 10
    assert serve(store, log_of(*range(12), 77), 5) == 12


def test_pinned_pages_never_leave() -> None:
    store = make_store(4)
    log = log_of(*range(12))
    lease = store.acquire(store.lookup(log, 12, 0), 0, 0, log.page_keys(4, 12))
    store.extend(lease, 0, 12)
    store.publish(lease, log, 12)
    other = log_of(*range(50, 58))
    held = store.acquire(store.lookup(other, 8, 1), 0, 1, other.page_keys(4, 8))
    with pytest.raises(OutOfPages):
        store.extend(held, 0, 8)
    store.check()
    assert store.lookup(log, 12, 0).residency.leading(Tier.DEVICE) == 12


def test_a_page_being_computed_is_claimed() -> None:
    store = make_store(8)
    log = log_of(*range(8))
    lease = store.acquire(store.lookup(log, 8, 0), 0, 0, log.page_keys(4, 8))
    assert store.lookup(log_of(*range(8), 9), 9, 1).blocked
    assert not store.lookup(log_of(5, 6, 7, 8), 4, 1).blocked
    store.extend(lease, 0, 8)
    store.publish(lease, log, 8)
    assert not store.lookup(log_of(*range(8), 9), 9, 1).blocked


def test_holes_are_kept_and_filled() -> None:
    store = make_store(8, policy=HeadFirst, leaves_only=False)
    first, second = log_of(*range(16)), log_of(*range(100, 120))
    serve(store, first, 0)
    serve(store, second, 1)
    spans = store.lookup(first, 16, 0).residency.spans
    assert spans[0].tiers == () and spans[-1].tiers == (Tier.DEVICE,)
    match = store.lookup(first, 16, 0)
    lease = store.acquire(match, 16, 0, first.page_keys(4, 16))
    assert store.lookup(first, 16, 5).blocked
    store.extend(lease, 0, 16)
    store.publish(lease, first, 16)
    store.check()
    store.release(lease, first, 16, "pages")
    assert store.lookup(first, 16, 0).residency.leading(Tier.DEVICE) == 16
    store.check()


def test_a_refilled_hole_starts_anew() -> None:
    store = make_store(8, policy=HeadFirst, leaves_only=False)
    first = log_of(*range(16))
    serve(store, first, 0)
    serve(store, log_of(*range(100, 120)), 1)
    match = store.lookup(first, 16, 0)
    lease = store.acquire(match, 16, 0, first.page_keys(4, 16))
    hole = lease.holes[0]
    store.extend(lease, 0, 16)
    assert (hole.inserted, hole.uses) == (store.pages.tick, 1)


def test_the_return_of_a_suspended_request_is_no_new_use() -> None:
    store = make_store(8)
    log = log_of(*range(8))
    serve(store, log, 0)
    run = store.lookup(log, 8, 0).chain[0][0]
    uses = run.uses
    store.acquire(store.lookup(log, 8, 0), 8, 0, log.page_keys(4, 8), first=False)
    assert run.uses == uses


def test_a_part_may_not_leave_from_the_head_where_only_leading_runs_help() -> None:
    store = make_store(4, policy=HeadFirst)
    serve(store, log_of(*range(12)), 0)
    other = log_of(*range(50, 58))
    lease = store.acquire(store.lookup(other, 8, 1), 0, 1, other.page_keys(4, 8))
    with pytest.raises(RuntimeError, match="may not leave"):
        store.extend(lease, 0, 8)


def test_lru_lets_the_oldest_tail_go_first() -> None:
    store = make_store(6)
    serve(store, log_of(*range(12)), 0)
    serve(store, log_of(*range(50, 62)), 1)
    serve(store, log_of(*range(80, 88)), 2)
    assert store.lookup(log_of(*range(12)), 12, 0).residency.tokens == 4
    assert store.lookup(log_of(*range(50, 62)), 12, 1).residency.tokens == 12
    assert store.device.evicted_pages == 2


def test_concurrent_equal_outputs_are_merged() -> None:
    store = make_store(8)
    logs = [log_of(1, 2, 3, 4), log_of(1, 2, 3, 4)]
    leases: list[Lease] = []
    for conversation, log in enumerate(logs):
        match = store.lookup(log, 2, conversation)
        lease = store.acquire(match, 0, conversation, log.page_keys(4, 2))
        store.extend(lease, 0, 4)
        leases.append(lease)
    for lease, log in zip(leases, logs, strict=True):
        store.publish(lease, log, 4)
        store.check()
    assert leases[0].table[0] == leases[1].table[0]
    for lease, log in zip(leases, logs, strict=True):
        store.release(lease, log, 4, "pages")
        store.check()
    assert store.device.used_pages == 1


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), leaves_only=st.booleans(), page_size=st.integers(1, 5), pages=st.integers(6, 14))
def test_invariants_hold_after_every_step(
    policy: type, data: st.DataObject, leaves_only: bool, page_size: int, pages: int
) -> None:
    leaves_only &= policy is not HeadFirst
    store = make_store(pages, page_size, policy, leaves_only=leaves_only)
    open_leases: list[tuple[Lease, IdLog, int]] = []
    for _ in range(data.draw(st.integers(1, 25), label="steps")):
        if open_leases and data.draw(st.booleans(), label="finish"):
            lease, log, done = open_leases.pop(data.draw(st.integers(0, len(open_leases) - 1), label="which"))
            store.release(lease, log, done, data.draw(st.sampled_from(["nothing", "pages", "tokens"]), label="keep"))
        else:
            _open(store, data, open_leases)
        store.check()
    for lease, log, done in open_leases:
        store.release(lease, log, done, "tokens")
        store.check()
    assert not store.leases and not store.claims
    assert store.available() == pages


def _open(store: PageStore, data: st.DataObject, open_leases: list[tuple[Lease, IdLog, int]]) -> None:
    ids = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=4 * store.page_size), label="ids")
    conversation = data.draw(st.integers(0, 2), label="conversation")
    log = log_of(*ids)
    match = store.lookup(log, len(log), conversation)
    if match.blocked:
        return
    holes = not store.device.leaves_only
    used = match.residency.tokens if holes else match.residency.leading(Tier.DEVICE)
    if holes and match.residency.spans and not match.residency.spans[-1].tiers:
        used = match.residency.spans[-1].start
    lease = store.acquire(match, used, conversation, log.page_keys(store.page_size, len(log)))
    try:
        store.extend(lease, 0, len(log))
    except OutOfPages:
        store.release(lease, log, used, "tokens")
        return
    store.publish(lease, log, len(log))
    open_leases.append((lease, log, len(log)))
