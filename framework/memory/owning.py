"""Pages that a request takes out of the tree, because it is about to change what is in them."""

from __future__ import annotations

from ..policy import Tier
from .lease import Lease
from .store import PageStore


def own_pages(store: PageStore, lease: Lease) -> None:
    """All stored pages of ``lease``, on the device or on their way there, become its own; copies below are forgotten.

    Nobody else may hold them. Copies that still read them are waited for by the next iteration.
    """
    store.claims.drop(lease)
    for run in list(lease.leaf.chain()):
        assert run.pins == 1 and run.slots[Tier.DEVICE] is not None, "pages that are not the request's alone"
        for tier in store.pools:
            if run.slots[tier] is not None:
                store.pages.leave(run, tier, evicted=False, free=tier != Tier.DEVICE, in_use=True)
        run.pins, run.claimed = 0, False
        store.tree.prune(run)
    lease.leaf, lease.published = store.tree.root, 0
    lease.loading.clear()
    store.device.will_change(lease.own_slots())


def shrink(store: PageStore, lease: Lease, tokens: int) -> int:
    """Give back the pages of ``lease``, all its own, behind its first ``tokens`` tokens; returns how many."""
    assert not lease.published, "stored pages cannot be given back"
    behind = lease.table[-(-tokens // store.page_size) :]
    slots = behind[behind >= 0]
    if len(slots):
        store.device.give(slots)
        behind[:] = -1
    return len(slots)
