"""The store's invariants, as one function."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from ..policy import Tier
from .run import Run

if TYPE_CHECKING:
    from .store import PageStore


def check_store(store: PageStore) -> None:
    """Raise AssertionError, saying what is wrong, unless the store is consistent.

    Free + used = capacity per tier; no slot in two places; pins equal the leases and fetches that hold a run; parents,
    children, kids, spare and evictable counts agree; claims belong to leases.
    """
    runs = [run for run in store.tree.root.below() if run.parent is not None]
    _check_structure(store, runs)
    _check_pins(store, runs)
    for tier, pool in store.pools.items():
        held = [slots for run in runs if (slots := run.slots[tier]) is not None]
        if tier is Tier.DEVICE:
            held += [lease.own_slots() for lease in store.leases]
        held += [lease.tail.slots for lease in store.leases if lease.tail is not None and lease.tail.tier == tier]
        everything = np.concatenate([pool.free_slots(), *held])
        assert len(everything) == pool.capacity, f"{tier.name}: {len(everything)} slots known of {pool.capacity}"
        assert len(np.unique(everything)) == pool.capacity, f"{tier.name}: a slot is in two places"
        evictable = sum(run.pages for run in runs if run.slots[tier] is not None and not run.pins)
        assert evictable == pool.evictable_pages, (
            f"{tier.name}: {pool.evictable_pages} evictable counted, {evictable} are"
        )
        spare = [run for run in runs if run.is_spare(tier)]
        assert set(spare) == set(pool.spare), f"{tier.name}: spare runs disagree"
        assert sum(run.pages for run in spare) == pool.spare_pages, f"{tier.name}: spare pages miscounted"
        assert all(run.slots[tier] is not None and not run.pins for run in spare), "a spare run that is held or gone"
        assert all(store.pages.copied_below(run, tier) for run in spare), "a spare run without a copy below"
    for key, lease in store.claims.items():
        assert lease in store.leases and lease.claim == key, "a claim without its lease"


def _check_structure(store: PageStore, runs: list[Run]) -> None:
    for run in [store.tree.root, *runs]:
        for tier in store.pools:
            kids = [*run.children.values(), *run.tails.values()]
            resident = sum(kid.slots[tier] is not None and not kid.is_spare(tier) for kid in kids)
            assert run.kids[tier] == resident, "kids miscounted"
        for key, child in run.children.items():
            assert child.parent is run and int(child.keys[0]) == key, "a child under the wrong key"
            assert child.start == run.start + run.pages, "a gap between runs"
            assert child.fill == store.page_size, "a partial page inside a chain"
        for conversation, tail in run.tails.items():
            assert tail.parent is run and tail.conversation == conversation and tail.pages == 1, "a tail misplaced"
            assert 0 < tail.fill < store.page_size, "a tail that is not partial"
    for run in runs:
        assert run.pins or run.resident or run.children or run.tails, "a dead run in the tree"
        assert run.pages == len(run.keys), "pages miscounted"
        for at, slots in enumerate(run.slots):
            assert slots is None or len(slots) == run.pages, "slots do not match pages"
            assert (run.held >> at & 1) == (slots is not None), "a run forgot who holds it"


def _check_pins(store: PageStore, runs: list[Run]) -> None:
    pins: Counter[int] = Counter()
    for lease in store.leases:
        holes = {id(hole) for hole in lease.holes}
        for run in lease.leaf.chain():
            pins[id(run)] += 1
            slots = run.slots[Tier.DEVICE]
            assert slots is not None or id(run) in holes, "a pinned page left the device"
            held = lease.table[run.start : run.start + run.pages]
            assert slots is None or np.array_equal(held, slots), "a table disagrees with its run"
        assert lease.published == lease.leaf.start + lease.leaf.pages, "published pages miscounted"
    for run in store.fetches.runs:
        pins.update(id(held) for held in run.chain())
        assert run.claimed and run.slots[Tier.HOST] is not None, "a fetch without its claim or place"
    for run in runs:
        assert run.pins == pins[id(run)], f"{run.pins} pins counted, {pins[id(run)]} held"
