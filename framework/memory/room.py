"""Making room: evicting, copying down before or when pages must leave, reclaiming what has a copy."""

from __future__ import annotations

from ..policy import Tier, Victim, Writeback
from .pages import Pages
from .pool import TierPool
from .run import Run

ROOM_SHARE = 64  # of a tier at most one such part is freed in advance of what comes down


class OutOfPages(RuntimeError):
    """More pages were asked for than are free or evictable."""


class Room:
    """Frees slots of a tier: spare pages first, then what its eviction policy names, kept as ``writeback`` says."""

    def __init__(self, pages: Pages, writeback: Writeback) -> None:
        self._pages = pages
        self._writeback = writeback
        self.closed: frozenset[Tier] = frozenset()  # tiers into which nothing more is copied
        self._more = 0  # pages that are about to follow to the tier below

    def make(self, tier: Tier, pages: int) -> None:
        """Have ``pages`` free slots in ``tier``.

        Raises
        ------
        OutOfPages
            If the free and evictable pages do not suffice; nothing was evicted then.
        """
        pool = self._pages.pools[tier]
        if pages > pool.available_pages:
            raise OutOfPages(f"{pages} pages wanted, {pool.available_pages} of {pool.capacity} can be had")
        while pages > pool.free_pages:  # again, where making room below gave the policy spare runs back
            before = pool.free_pages
            self._free(pool, pages)
            if pool.free_pages <= before:
                raise RuntimeError(f"eviction policy {pool.eviction.name!r} named too few victims")

    def _free(self, pool: TierPool, pages: int) -> None:
        """Reclaim and evict until ``pages`` slots are free, or the policy names no more."""
        while pool.spare and pages > pool.free_pages:
            self._reclaim(pool, pages - pool.free_pages)
        if pages <= pool.free_pages:
            return
        for victim in pool.eviction.victims(pages - pool.free_pages):
            self._more = pages - pool.free_pages
            self._evict(pool, victim)
            if pages <= pool.free_pages and not victim.more:
                return

    def copy_ahead(self, tier: Tier, pages: int) -> None:
        """Copy ``pages`` pages of ``tier`` down, those that would leave first; they become spare. Stops where the tier
        below has no room, or makes it by dropping the copies of spare ones."""
        pool = self._pages.pools[tier]
        done = 0
        for victim in pool.eviction.victims(pages):
            run = self._cut(pool, victim)
            before = pool.spare_pages
            self._more = pages - done
            if not self._pages.copied_below(run, tier) and not self._copy_down(run, tier, "swap-out"):
                return
            self._pages.set_aside(run, tier)
            done += run.pages
            if pool.spare_pages <= before or (done >= pages and not victim.more):
                return

    def save(self, run: Run) -> bool:
        """Copy ``run`` from the device to the next tier, unless a tier below holds it; False if there is no room."""
        return self._pages.copied_below(run, Tier.DEVICE) or self._copy_down(run, Tier.DEVICE, "write-back")

    def vacate(self, run: Run) -> None:
        """``run``, which nobody pins, leaves the device; it is copied down first if it can be."""
        saved = self.save(run)
        self._pages.leave(run, Tier.DEVICE, evicted=False, in_use=saved)
        self._pages.tree.prune(run)

    def _reclaim(self, pool: TierPool, pages: int) -> None:
        run = next(iter(pool.spare))
        if run.pages > pages:
            upper = self._pages.split(run, run.pages - pages if pool.leaves_only else pages)
            run = run if pool.leaves_only else upper
        pool.evicted_pages += run.pages
        self._pages.leave(run, pool.tier, evicted=False)
        self._pages.join_to_parent(run, pool.tier)

    def _evict(self, pool: TierPool, victim: Victim) -> None:
        if self._trimmed(pool, victim):
            return
        run = self._cut(pool, victim)
        pool.evicted_pages += run.pages
        for part in self._kept_and_dropped(pool, run):
            self._drop(pool, part, saved=self._pages.copied_below(part, pool.tier))

    def _drop(self, pool: TierPool, run: Run, *, saved: bool) -> None:
        self._pages.leave(run, pool.tier, evicted=True, in_use=saved)
        if run.resident or run.children or run.tails:
            self._pages.join_to_parent(run, pool.tier)
        else:
            self._pages.tree.prune(run)

    def _kept_and_dropped(self, pool: TierPool, run: Run) -> list[Run]:
        """Copy of ``run`` what should and can be copied down; the parts of it, which leave now, last pages first."""
        below = self._pages.below(pool.tier)
        if below is None or self._pages.copied_below(run, pool.tier):
            return [run]
        if not self._writeback.on_evict(run, pool.tier):
            return [run]
        room = below.available_pages
        if 0 < room < run.pages:  # prefix systems need what comes first, the others best keep what costs most
            upper = self._pages.split(run, room if pool.leaves_only else run.pages - room)
            self._copy_down(upper if pool.leaves_only else run, pool.tier, "swap-out")
            return [run, upper]
        self._copy_down(run, pool.tier, "swap-out")
        return [run]

    def _copy_down(self, run: Run, tier: Tier, reason: str) -> bool:
        below = self._pages.below(tier)
        if below is None or below.tier in self.closed or run.pages > below.available_pages:
            return False
        more, self._more = min(self._more, below.capacity // ROOM_SHARE), 0  # or it is asked for every chunk again
        self.make(below.tier, min(max(run.pages, more), below.available_pages))
        slots = below.take(run.pages)
        self._pages.copy(run, tier, below.tier, slots, reason, yields=self._writeback.yields)
        self._pages.enter(run, below.tier, slots)
        return True

    def _trimmed(self, pool: TierPool, victim: Victim) -> bool:
        """A part of a run leaves without a copy: in place, where that can be."""
        if pool.capacity_below or victim.pages >= victim.run.pages or not pool.eviction.trims:
            return False
        run = self._checked(pool, victim)
        if not self._pages.trim(run, pool.tier, victim.pages, head=victim.end == "head"):
            return False
        pool.evicted_pages += victim.pages
        return True

    def _checked(self, pool: TierPool, victim: Victim) -> Run:
        """The run of ``victim``, or RuntimeError if it may not leave."""
        run, pages, end = victim.run, victim.pages, victim.end
        assert isinstance(run, Run)
        cuts = end == "head" and pool.leaves_only and pages < run.pages
        if cuts or not pool.evictable(run) or not 0 < pages <= run.pages or run.is_spare(pool.tier):
            raise RuntimeError(f"eviction policy {pool.eviction.name!r} named pages that may not leave")
        return run

    def _cut(self, pool: TierPool, victim: Victim) -> Run:
        """The victim as a run of its own."""
        run = self._checked(pool, victim)
        if victim.pages == run.pages:
            return run
        upper = self._pages.split(run, run.pages - victim.pages if victim.end == "tail" else victim.pages)
        return run if victim.end == "tail" else upper
