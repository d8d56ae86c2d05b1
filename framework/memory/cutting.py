"""Cutting the oldest pages off a context whose stored K/V stay in use."""

from __future__ import annotations

from .pages import Pages
from .run import Keys, Run


def cut(pages: Pages, keys: Keys, first: int, conversation: int, *, keep: bool) -> int:
    """Forget the first ``first`` pages of the context ``keys`` of ``conversation``; what follows them begins a context.

    ``keep`` False forgets what follows too. What another conversation uses, or somebody holds, stays where it is, and
    so does what follows it: it is not found under the new context, whose pages are computed again.

    Returns
    -------
    int
        How many pages begin the new context.
    """
    chain = [run for run, _ in pages.tree.walk(keys)]
    _cut_at(pages, chain, first)
    before, behind = [run for run in chain if run.start < first], [run for run in chain if run.start >= first]
    kept = 0
    if behind and behind[0].start == first and first and _belongs_to(behind[0], conversation):
        if keep and int(behind[0].keys[0]) not in pages.tree.root.children:
            _move_to_root(pages, behind[0])
            kept = sum(run.pages for run in behind)
        else:  # or an equal context was cut at the same place before: its pages are as good
            _forget(pages, list(behind[0].below()))
    for run in reversed(before):
        if _belongs_to(run, conversation):
            _forget(pages, [run])
    return kept


def forget(pages: Pages, keys: Keys, conversation: int) -> None:
    """The context ``keys`` of ``conversation`` and what follows it leave all tiers, as far as nobody else uses them."""
    chain = [run for run, _ in pages.tree.walk(keys)]
    if chain and _belongs_to(chain[0], conversation):
        _forget(pages, list(chain[0].below()))


def _cut_at(pages: Pages, chain: list[Run], first: int) -> None:
    """Have a run of ``chain`` begin at page ``first``, if nobody holds the one that it lies in."""
    for at, run in enumerate(chain):
        if run.start < first < run.start + run.pages and not (run.pins or run.claimed):
            chain.insert(at, pages.split(run, first - run.start))
            return


def _belongs_to(run: Run, conversation: int) -> bool:
    """Nobody else uses ``run`` or anything that follows it, and nobody holds any of it."""
    return all(
        part.conversation == conversation and not (part.shared or part.pins or part.claimed) for part in run.below()
    )


def _move_to_root(pages: Pages, run: Run) -> None:
    """``run`` and all that follows it begin a context."""
    root, parent, shift = pages.tree.root, run.parent, run.start
    assert parent is not None
    key = int(run.keys[0])
    del parent.children[key]
    for tier in pages.pools:
        counted = run.slots[tier] is not None and not run.is_spare(tier)
        parent.kids[tier] -= counted
        root.kids[tier] += counted
    run.parent = root
    run.stamp += 1
    root.children[key] = run
    for part in run.below():
        part.start -= shift
    for tier, pool in pages.pools.items():
        if parent.slots[tier] is not None and not parent.pins and not parent.is_spare(tier):
            pool.eviction.released(parent)  # it may have become a leaf
    pages.tree.prune(parent)


def _forget(pages: Pages, runs: list[Run]) -> None:
    """``runs``, which nobody holds, leave all tiers; deepest first."""
    for run in sorted(runs, key=lambda run: -run.start):
        for tier in pages.pools:
            if run.slots[tier] is not None:
                pages.leave(run, tier, evicted=False)
        pages.tree.prune(run)
