"""A run: consecutive pages of one chain with equal residency, pins and last use; the node of the store's radix tree."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..policy import Tier

Slots = NDArray[np.int32]
Keys = NDArray[np.int64]
TIERS = len(Tier)


class Run:
    """One node of the page tree. Only the store writes to it; policies read it as a ``RunView``.

    ``slots[tier]`` are the places of its pages in that tier (None: not resident there), ``held`` the tiers (as bits)
    that hold it, ``kids[tier]`` how many direct children are resident and not spare there, ``fill`` the tokens in its
    last page (less than a page only for a conversation's partial tail), ``claimed`` that its pages are being computed,
    loaded or fetched, ``shared`` that more than one conversation used it, ``spare`` the tiers (as bits) in which it may
    be reclaimed at no cost. ``stamp`` grows whenever it changes which its pages are, where they are, or, of a partial
    tail, that somebody holds it.
    """

    __slots__ = (
        "children",
        "claimed",
        "conversation",
        "fill",
        "held",
        "inserted",
        "keys",
        "kids",
        "last_use",
        "pages",
        "parent",
        "pins",
        "shared",
        "slots",
        "spare",
        "stamp",
        "start",
        "tails",
        "uses",
    )

    def __init__(self, parent: Run | None, keys: Keys, start: int, fill: int, conversation: int, tick: int) -> None:
        self.parent = parent
        self.keys = keys
        self.pages = len(keys)
        self.start = start
        self.fill = fill
        self.conversation = conversation
        self.inserted = self.last_use = tick
        self.children: dict[int, Run] = {}
        self.tails: dict[int, Run] = {}
        self.slots: list[Slots | None] = [None] * TIERS
        self.held = 0
        self.kids = [0] * TIERS
        self.pins = 0
        self.uses = 1
        self.claimed = False
        self.shared = False
        self.spare = 0
        self.stamp = 0

    @property
    def resident(self) -> bool:
        """True if any tier holds it."""
        return self.held > 0

    def rekey(self, keys: Keys) -> None:
        """``keys`` are those of its pages from now on."""
        self.keys, self.pages = keys, len(keys)

    def held_by(self, tier: Tier) -> bool:
        """See ``RunView.held_by``."""
        return self.held >> tier & 1 > 0

    def is_spare(self, tier: Tier) -> bool:
        """It may be reclaimed from ``tier`` at no cost."""
        return bool(self.spare >> tier & 1)

    def parent_keys(self) -> Keys:
        """Content key of the page before each of its pages, 0 before a context's first; a partial tail's own key."""
        if self.partial:
            return self.keys
        assert self.parent is not None
        first = self.parent.keys[-1:] if self.parent.parent is not None else np.zeros(1, dtype=np.int64)
        return np.concatenate([first, self.keys[:-1]])

    @property
    def partial(self) -> bool:
        """It is a conversation's partial tail page."""
        return self.parent is not None and self.parent.tails.get(self.conversation) is self

    def chain(self) -> Iterator[Run]:
        """This run and its ancestors, deepest first, without the root."""
        run = self
        while run.parent is not None:
            yield run
            run = run.parent

    def below(self) -> Iterator[Run]:
        """All runs of the subtree, this one included."""
        stack = [self]
        while stack:
            run = stack.pop()
            yield run
            stack.extend(run.children.values())
            stack.extend(run.tails.values())


def common_pages(a: Keys, b: Keys) -> int:
    """Length of the common prefix of two key arrays; a key stands for its page and all before it."""
    n = min(len(a), len(b))
    return n if not n or a[n - 1] == b[n - 1] else int((a[:n] != b[:n]).argmax())
