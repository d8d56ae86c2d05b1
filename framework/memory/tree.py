"""The radix tree of runs: finding, splitting and pruning. It knows structure, not capacity."""

from __future__ import annotations

import numpy as np

from ..policy import Tier
from ..workloads.tokens import TokenLog
from .run import Keys, Run, Slots, common_pages


class PageTree:
    """Chains of pages by content key. The root is an empty run that never leaves."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.root = Run(None, np.empty(0, dtype=np.int64), 0, page_size, -1, 0)

    def walk(self, keys: Keys) -> list[tuple[Run, int]]:
        """The runs along ``keys`` with the number of pages that match in each; only the last may match in part."""
        chain: list[tuple[Run, int]] = []
        node, done = self.root, 0
        while done < len(keys):
            child = node.children.get(int(keys[done]))
            if child is None:
                break
            matched = common_pages(child.keys, keys[done:])
            chain.append((child, matched))
            done += matched
            if matched < child.pages:
                break
            node = child
        return chain

    def tail_of(self, node: Run, conversation: int, log: TokenLog, known_tokens: int) -> Run | None:
        """The conversation's partial page after ``node`` if it is free and its tokens begin what follows."""
        tail = node.tails.get(conversation)
        if tail is None or tail.pins:
            return None
        stop = tail.start * self.page_size + tail.fill
        same = stop <= known_tokens and log.tail_key(self.page_size, stop) == int(tail.keys[0])
        return tail if same else None

    def add(self, parent: Run, keys: Keys, start: int, conversation: int, tick: int) -> Run:
        """A new run of full pages below ``parent``."""
        run = Run(parent, keys, start, self.page_size, conversation, tick)
        parent.children[int(keys[0])] = run
        return run

    def add_tail(self, parent: Run, key: int, start: int, fill: int, conversation: int, tick: int) -> Run:
        """The conversation's partial page below ``parent``."""
        run = Run(parent, np.array([key], dtype=np.int64), start, fill, conversation, tick)
        parent.tails[conversation] = run
        return run

    def split(self, run: Run, pages: int) -> Run:
        """Give the first ``pages`` pages of ``run`` to a new run above it, and return that one."""
        assert 0 < pages < run.pages and run.parent is not None
        upper = Run(run.parent, run.keys[:pages], run.start, self.page_size, run.conversation, run.inserted)
        upper.last_use, upper.uses, upper.pins = run.last_use, run.uses, run.pins
        upper.claimed, upper.shared, upper.spare = run.claimed, run.shared, run.spare
        upper.held = run.held
        for tier, slots in enumerate(run.slots):
            if slots is not None:
                upper.slots[tier], run.slots[tier] = slots[:pages], slots[pages:]
                upper.kids[tier] = ~run.spare >> tier & 1
        run.parent.children[int(run.keys[0])] = upper
        run.rekey(run.keys[pages:])
        run.start, run.parent = run.start + pages, upper
        upper.children[int(run.keys[0])] = run
        run.stamp += 1
        return upper

    def join(self, upper: Run, lower: Run) -> None:
        """Let ``upper`` take the place of its only child ``lower``, which continues it and is resident where it is."""
        for tier, slots in enumerate(upper.slots):
            below = lower.slots[tier]
            if slots is not None and below is not None:
                upper.slots[tier] = np.concatenate([slots, below])
        upper.rekey(np.concatenate([upper.keys, lower.keys]))
        upper.kids, upper.children, upper.tails = lower.kids, lower.children, lower.tails
        for kid in [*lower.children.values(), *lower.tails.values()]:
            kid.parent = upper
        upper.stamp += 1
        lower.stamp += 1

    def shift(self, upper: Run, lower: Run, pages: int) -> None:
        """Let the first ``pages`` pages of ``lower`` become the last ones of its parent ``upper``; slots stay."""
        del upper.children[int(lower.keys[0])]
        upper.rekey(np.concatenate([upper.keys, lower.keys[:pages]]))
        lower.rekey(lower.keys[pages:])
        lower.start += pages
        upper.children[int(lower.keys[0])] = lower
        upper.stamp += 1
        lower.stamp += 1

    def prune(self, run: Run) -> None:
        """Forget ``run`` and its ancestors as far as nothing is resident, pinned or below them; again: a no-op."""
        while run.parent is not None and not (run.pins or run.children or run.tails or run.held):
            parent = run.parent
            if parent.tails.get(run.conversation) is run:
                del parent.tails[run.conversation]
            elif parent.children.get(int(run.keys[0])) is run:
                del parent.children[int(run.keys[0])]
            else:
                return
            run.stamp += 1
            run = parent


def set_slots(run: Run, tier: Tier, slots: Slots | None) -> None:
    """Make ``run`` resident in ``tier`` at ``slots`` (or not at all) and keep its parent's count."""
    assert run.parent is not None
    bit = 1 << tier
    if not run.spare & bit:
        run.parent.kids[tier] += (slots is not None) - (run.held & bit > 0)
    run.slots[tier] = slots
    run.stamp += 1
    if slots is None:
        run.spare &= ~bit
        run.held &= ~bit
    else:
        run.held |= bit
