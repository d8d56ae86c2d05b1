"""Losing pages that turn out damaged, and taking over what an earlier run left."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..policy import Tier
from .pages import Pages
from .run import Keys, Run, Slots


def lose(pages: Pages, tier: Tier, slots: Slots, keys: Keys | None = None) -> int:
    """See ``PageStore.lose``."""
    lost = 0
    damaged = np.zeros(pages.pools[tier].capacity, dtype=bool)
    damaged[slots] = True
    expected = np.zeros(len(damaged), dtype=np.int64)
    expected[slots] = 0 if keys is None else keys
    for found in [run for run in pages.tree.root.below() if run.parent is not None]:
        run: Run | None = found
        held = found.slots[tier]
        bad = _bad(found, held, damaged, None if keys is None else expected)
        lost += len(bad)
        while bad and run is not None:
            run = _lose_page(pages, run, bad.pop(), tier)
    return lost


def _bad(run: Run, held: Slots | None, damaged: NDArray[np.bool_], expected: Keys | None) -> list[int]:
    """The pages of ``run``, in the slots ``held``, that are damaged."""
    if held is None:
        return []
    bad = damaged[held] if expected is None else damaged[held] & (expected[held] == run.keys)
    return [int(page) for page in np.flatnonzero(bad)]


def _lose_page(pages: Pages, run: Run, page: int, tier: Tier) -> Run | None:
    """Forget one page of ``run`` in ``tier``, or, where somebody holds the run, all of it; what precedes that page."""
    if run.claimed or run.pins:
        pages.leave(run, tier, evicted=False)
        return None
    if page + 1 < run.pages:
        run = pages.split(run, page + 1)
    upper = pages.split(run, page) if page else None
    pages.leave(run, tier, evicted=False)
    pages.tree.prune(run)
    return upper


def adopt(pages: Pages, tier: Tier, slots: Slots, keys: Keys, parents: Keys) -> int:
    """See ``PageStore.adopt``. O(pages)."""
    kids = _kids(keys, parents)
    tree, placed = pages.tree, list[int]()
    stack = [(tree.root, row) for row in kids.get(0, [])]
    while stack:
        parent, row = stack.pop()
        chain = [row]
        while len(below := kids.get(int(keys[chain[-1]]), [])) == 1:
            chain += below
        run = tree.add(parent, keys[chain], parent.start + parent.pages, -1, pages.tick)
        pages.enter(run, tier, slots[chain])
        placed += chain
        stack += [(run, other) for other in below]
    pages.pools[tier].take_these(slots[placed])
    return len(placed)


def _kids(keys: Keys, parents: Keys) -> dict[int, list[int]]:
    """Rows by the key of their parent; of equal keys the first row, without partial tails."""
    kids: dict[int, list[int]] = {}
    seen: set[int] = set()
    for row, (key, parent) in enumerate(zip(keys.tolist(), parents.tolist(), strict=True)):
        if key != parent and key not in seen:
            seen.add(key)
            kids.setdefault(parent, []).append(row)
    return kids
