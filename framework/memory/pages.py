"""Which page is where: the tree of runs, the tiers' slots, and what eviction policies are told. No requests."""

from __future__ import annotations

from collections.abc import Mapping

from ..policy import Costs, Eviction, Future, QueueView, Tier
from .moves import Move, Outbox
from .pool import EmptyQueue, Moment, Surroundings, TierPool
from .run import Run, Slots
from .tree import PageTree, set_slots


class Pages:
    """Runs and their residency. Every change of residency, and every pin, goes through here.

    Parameters
    ----------
    page_size: tokens in a page, >= 1.
    capacity: pages of each tier.
    evictions: one eviction policy per tier, not shared.

    Attributes
    ----------
    lost: conversations of which pages left the last tier that held them, since somebody emptied it; None: nobody asks.
    """

    def __init__(
        self,
        page_size: int,
        capacity: Mapping[Tier, int],
        evictions: Mapping[Tier, Eviction],
        *,
        costs: Costs,
        leaves_only: bool,
        future: Future | None,
        queue: QueueView | None,
    ) -> None:
        if page_size < 1:
            raise ValueError(f"page_size is {page_size}; it must be at least 1")
        self.page_size = page_size
        self.tree = PageTree(page_size)
        self.moment = Moment()
        self.outbox = Outbox()
        waiting = EmptyQueue() if queue is None else queue  # an empty queue is false
        around = Surroundings(page_size, leaves_only, costs, waiting, self.moment, future)
        self.pools: dict[Tier, TierPool] = {}
        for tier in sorted(capacity):
            lower = sum(pages for other, pages in capacity.items() if other > tier)
            self.pools[tier] = TierPool(tier, capacity[tier], evictions[tier], around, lower)
        self.device = self.pools[Tier.DEVICE]
        self._tiers = tuple(self.pools)
        self.lost: list[int] | None = None
        every = range(1 << len(Tier))
        self._held_by = [tuple([tier for tier in self._tiers if held >> tier & 1]) for held in every]

    @property
    def tick(self) -> int:
        """The current logical time."""
        return self.moment.tick

    def advance(self) -> None:
        """One logical step on."""
        self.moment.tick += 1

    def below(self, tier: Tier) -> TierPool | None:
        """The next tier down."""
        at = self._tiers.index(tier) + 1
        return self.pools[self._tiers[at]] if at < len(self._tiers) else None

    def tiers_of(self, run: Run) -> tuple[Tier, ...]:
        """The tiers that hold ``run``, nearest first."""
        return self._held_by[run.held]

    def copied_below(self, run: Run, tier: Tier) -> bool:
        """A tier below ``tier`` holds ``run`` too."""
        return run.held >> tier > 1

    # --- residency ----------------------------------------------------------------------------------------------

    def enter(self, run: Run, tier: Tier, slots: Slots) -> None:
        """``run`` becomes resident in ``tier``."""
        pool = self.pools[tier]
        set_slots(run, tier, slots)
        pool.eviction.inserted(run, run.pages)
        if not run.pins:
            pool.evictable_pages += run.pages
            pool.eviction.released(run)

    def leave(self, run: Run, tier: Tier, *, evicted: bool, free: bool = True, in_use: bool = False) -> None:
        """``run`` leaves ``tier``; ``free``: its slots are given back, to be used last if a copy still reads them."""
        pool, slots = self.pools[tier], run.slots[tier]
        assert slots is not None
        if not run.pins:
            pool.evictable_pages -= run.pages
        if free:
            pool.give(slots, in_use=in_use)
        spare = run in pool.spare
        if spare:
            del pool.spare[run]
            pool.spare_pages -= run.pages
        set_slots(run, tier, None)
        if self.lost is not None and not run.resident:
            self.lost.append(run.conversation)
        if not spare:
            pool.eviction.removed(run, evicted)
        if run.spare:
            self._take_back_uncovered(run)

    def _take_back_uncovered(self, run: Run) -> None:
        """Where ``run`` is spare without a copy below, its policy orders it again."""
        for tier, pool in self.pools.items():
            if run.is_spare(tier) and not self.copied_below(run, tier):
                self._take_back(run, pool)
                pool.eviction.released(run)

    def set_aside(self, run: Run, tier: Tier) -> None:
        """``run`` stays in ``tier``, but may be reclaimed at no cost from now on, unless it is pinned before."""
        pool = self.pools[tier]
        assert run.parent is not None and not run.pins and not run.is_spare(tier)
        run.parent.kids[tier] -= 1
        run.spare |= 1 << tier
        pool.spare[run] = None
        pool.spare_pages += run.pages
        pool.eviction.removed(run, True)

    def copy(self, run: Run, source: Tier, target: Tier, slots: Slots, reason: str, **how: object) -> None:
        """Emit the move that brings ``run`` from ``source`` to ``slots`` of ``target``."""
        held = run.slots[source]
        assert held is not None
        self.outbox.add(Move(source, target, held, slots, run.keys, run.parent_keys(), reason, **how))  # type: ignore[arg-type]

    def split(self, run: Run, pages: int) -> Run:
        """Give the first ``pages`` pages of ``run`` to a new run above it, and return that one."""
        upper = self.tree.split(run, pages)
        for tier, pool in self.pools.items():
            if upper.slots[tier] is None:
                continue
            if upper.is_spare(tier):
                pool.spare[upper] = None
            else:
                pool.eviction.split(upper, run)
        return upper

    def join_to_parent(self, run: Run, tier: Tier) -> None:
        """Let ``run``, which has left ``tier``, become part of its parent where only the cut distinguishes the two.

        Not while a tier above holds them: the policies of these tiers may be naming victims now.
        """
        parent = run.parent
        if parent is None or run.held & ((2 << tier) - 1) or run.held != parent.held or not _alone(parent, run):
            return
        holders = [pool for lower, pool in self.pools.items() if run.slots[lower] is not None]
        for pool in holders:
            pool.eviction.removed(run, False)
        self.tree.join(parent, run)
        for pool in holders:
            pool.eviction.inserted(parent, run.pages)

    def trim(self, run: Run, tier: Tier, pages: int, *, head: bool) -> bool:
        """Let ``pages`` pages at one end of ``run`` leave ``tier``, the only one that holds it, without a split: its
        last ones if nothing follows them, its first ones if those before them are gone. False if that cannot be."""
        pool, held = self.pools[tier], run.slots[tier]
        assert held is not None
        parent = run.parent
        if run.held != 1 << tier:
            return False
        if head:
            if parent is None or parent.held or not _alone(parent, run):
                return False
            self.tree.shift(parent, run, pages)
            gone, run.slots[tier] = held[:pages], held[pages:]
        else:
            if run.children or run.tails:
                return False
            run.rekey(run.keys[:-pages])
            gone, run.slots[tier] = held[-pages:], held[:-pages]
            run.stamp += 1
        if self.lost is not None:
            self.lost.append(run.conversation)
        pool.evictable_pages -= pages
        pool.give(gone)
        pool.eviction.trimmed(run, pages)
        return True

    # --- pins ---------------------------------------------------------------------------------------------------

    def pin(self, run: Run) -> None:
        """``run`` may not leave the tiers it is in; a spare one is in its policy's order again."""
        if not run.pins:
            for tier, pool in self.pools.items():
                if run.slots[tier] is not None:
                    pool.evictable_pages -= run.pages
                    if run.is_spare(tier):
                        self._take_back(run, pool)
        run.pins += 1
        run.last_use = self.moment.tick

    def _take_back(self, run: Run, pool: TierPool) -> None:
        assert run.parent is not None
        del pool.spare[run]
        pool.spare_pages -= run.pages
        run.spare &= ~(1 << pool.tier)
        run.parent.kids[pool.tier] += 1
        pool.eviction.inserted(run, run.pages)

    def unpin(self, run: Run) -> None:
        """One pin less; what nobody needs any more is forgotten."""
        run.pins -= 1
        if run.pins:
            return
        if run.partial:
            run.stamp += 1
        run.last_use = self.moment.tick
        for tier, pool in self.pools.items():
            if run.slots[tier] is not None:
                pool.evictable_pages += run.pages
                pool.eviction.released(run)
        self.tree.prune(run)


def _alone(upper: Run, lower: Run) -> bool:
    """``lower`` alone continues ``upper`` and differs from it only in where it is."""
    if upper.parent is None or upper.pins or lower.pins or upper.claimed or lower.claimed or lower.partial:
        return False
    if len(upper.children) != 1 or upper.tails or upper.spare or lower.spare:
        return False
    same = upper.last_use == lower.last_use and upper.uses == lower.uses
    return same and upper.conversation == lower.conversation
