"""Partial pages: a context's last tokens, which belong to their conversation alone."""

from __future__ import annotations

from ..policy import Tier
from .lease import Lease, StoredTail
from .moves import Move
from .pages import Pages
from .run import Run, Slots


def take_tail(pages: Pages, lease: Lease, tail: Run) -> None:
    """``tail`` leaves the tree: from now on the request alone writes to it. Of several copies the nearest is taken."""
    nearest = next(tier for tier in pages.pools if tail.slots[tier] is not None)
    slots = tail.slots[nearest]
    assert slots is not None
    pages.pools[nearest].eviction.accessed(tail)
    for tier in pages.pools:
        if tail.slots[tier] is not None:
            pages.leave(tail, tier, evicted=False, free=tier != nearest)
    pages.tree.prune(tail)
    lease.reserve(tail.start + 1)
    if nearest == Tier.DEVICE:
        lease.table[tail.start] = slots[0]
    else:
        lease.tail = StoredTail(tail.start, nearest, slots, tail.keys, tail.fill)


def load_tail(pages: Pages, lease: Lease, request: int, layers: tuple[int, int] | None) -> None:
    """The partial page of ``lease`` comes to a device slot, for which there is room; if only some of its layers do, its
    place below is held until :func:`load_rest_of_tail`."""
    tail = lease.tail
    assert tail is not None
    slots = pages.device.take(1)
    lease.table[tail.page] = slots[0]
    _emit(pages, tail, slots, request, layers)
    if layers is None:
        pages.pools[tail.tier].give(tail.slots, in_use=True)
        lease.tail = None


def load_rest_of_tail(pages: Pages, lease: Lease, request: int, layers: tuple[int, int] | None) -> None:
    """The other ``layers`` (None: there are none) follow, and the place below is free."""
    tail = lease.tail
    assert tail is not None
    if layers is not None:
        _emit(pages, tail, lease.table[tail.page : tail.page + 1].copy(), request, layers)
    pages.pools[tail.tier].give(tail.slots, in_use=True)
    lease.tail = None


def _emit(pages: Pages, tail: StoredTail, slots: Slots, request: int, layers: tuple[int, int] | None) -> None:
    keys, how = tail.keys, {"request": request, "urgent": True, "layers": layers}
    pages.outbox.add(Move(tail.tier, Tier.DEVICE, tail.slots, slots, keys, keys, "swap-in", **how))  # type: ignore[arg-type]


def put_back_tail(pages: Pages, lease: Lease) -> None:
    """A partial page that was not loaded returns to the tree, unless another one took its place."""
    tail = lease.tail
    if tail is None:
        return
    lease.tail = None
    if lease.conversation in lease.leaf.tails or tail.page != lease.published:
        pages.pools[tail.tier].give(tail.slots)
        return
    run = _add(pages, lease, int(tail.keys[0]), tail.fill)
    pages.enter(run, tail.tier, tail.slots)


def keep_tail(pages: Pages, lease: Lease, key: int, fill: int) -> Run | None:
    """The last ``fill`` tokens of ``lease``, a page of its own, go into the tree; what was there leaves. None if
    somebody holds that."""
    old = lease.leaf.tails.get(lease.conversation)
    if old is not None and old.pins:
        return None
    if old is not None:
        for tier in pages.pools:
            if old.slots[tier] is not None:
                pages.leave(old, tier, evicted=False)
        pages.tree.prune(old)
    page = lease.published
    slots = lease.table[page : page + 1].copy()
    lease.table[page] = -1
    run = _add(pages, lease, key, fill)
    pages.enter(run, Tier.DEVICE, slots)
    return run


def _add(pages: Pages, lease: Lease, key: int, fill: int) -> Run:
    return pages.tree.add_tail(lease.leaf, key, lease.published, fill, lease.conversation, pages.tick)
