"""Pages that turn out damaged below the device."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from kvarena.framework.memory import PageStore
from kvarena.framework.policy import Tier
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.writeback.on_evict import OnEvict

sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))
from toy import ToyCosts

KEYS = np.array([11, 12, 13], dtype=np.int64)


def adopted() -> PageStore:
    """Three pages of one chain in slots 5, 6 and 7 of the disk."""
    capacity = {Tier.DEVICE: 4, Tier.DISK: 8}
    store = PageStore(4, capacity, {tier: LRU() for tier in capacity}, costs=ToyCosts(), writeback=OnEvict())
    slots, parents = np.array([5, 6, 7], dtype=np.int32), np.array([0, 11, 12], dtype=np.int64)
    assert store.adopt(Tier.DISK, slots, KEYS, parents) == 3
    return store


def test_what_lies_in_a_damaged_slot_is_lost() -> None:
    store = adopted()
    assert store.lose(Tier.DISK, np.array([6], dtype=np.int32)) == 1
    store.check()
    assert store.pools[Tier.DISK].used_pages == 2


def test_a_slot_that_holds_another_page_by_now_keeps_it() -> None:
    store = adopted()
    slots = np.array([5, 6, 7], dtype=np.int32)
    assert store.lose(Tier.DISK, slots, np.array([11, 99, 98], dtype=np.int64)) == 1
    store.check()
    assert store.pools[Tier.DISK].used_pages == 2
