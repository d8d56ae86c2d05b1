"""The page store: which pages exist, where they are, who holds them. It owns every counter, pin and free list.

Full pages are shared by content; a partial tail page belongs to its conversation. The store moves no data: a slot is a
number, and whoever computes writes to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from ..policy import Costs, Eviction, Future, Residency, Span, Tier, Victim
from ..workloads.tokens import TokenLog
from .check import check_store
from .claims import Claims
from .lease import Lease, Match
from .pool import TierPool
from .run import Keys, Run, common_pages
from .tree import PageTree, set_slots

Keep = Literal["nothing", "pages", "tokens"]


class OutOfPages(RuntimeError):
    """More device pages were asked for than are free or evictable."""


class PageStore:
    """Pages of ``page_size`` tokens in tiers.

    Parameters
    ----------
    page_size: tokens in a page, >= 1.
    capacity: pages of each tier.
    evictions: one eviction policy per tier, not shared.
    leaves_only: True where the system reuses only leading runs: a run with a resident child is not evictable.
    costs: what recomputing and loading cost, for policies that ask.
    future: what an oracle may see.
    """

    def __init__(
        self,
        page_size: int,
        capacity: Mapping[Tier, int],
        evictions: Mapping[Tier, Eviction],
        *,
        costs: Costs,
        leaves_only: bool = True,
        future: Future | None = None,
    ) -> None:
        if page_size < 1:
            raise ValueError(f"page_size is {page_size}; it must be at least 1")
        self.page_size = page_size
        self.tree = PageTree(page_size)
        self.pools = {
            tier: TierPool(
                tier,
                pages,
                evictions[tier],
                page_size=page_size,
                leaves_only=leaves_only,
                costs=costs,
                future=future,
            )
            for tier, pages in capacity.items()
        }
        self.device = self.pools[Tier.DEVICE]
        self.leases: set[Lease] = set()
        self.claims = Claims()
        self.tick = 0

    # --- looking ------------------------------------------------------------------------------------------------

    def available(self, tier: Tier = Tier.DEVICE) -> int:
        """Pages that are free or could be freed by eviction."""
        pool = self.pools[tier]
        return pool.free_pages + pool.evictable_pages

    def lookup(self, log: TokenLog, known_tokens: int, conversation: int) -> Match:
        """The residency of the first ``known_tokens`` tokens of ``log``, holes included. Changes nothing. O(runs)."""
        keys = log.page_keys(self.page_size, known_tokens)
        chain = self.tree.walk(keys)
        end = chain[-1][0] if chain else self.tree.root
        whole = not chain or chain[-1][1] == end.pages
        tail = self.tree.tail_of(end, conversation, log, known_tokens) if whole else None
        pages = sum(matched for _, matched in chain)
        blocked = any(self._being_computed(run) for run, _ in chain)
        blocked |= pages < len(keys) and int(keys[pages]) in self.claims
        return Match(chain, tail, Residency(self._spans(chain, tail), self.page_size), blocked)

    def _being_computed(self, run: Run) -> bool:
        hole = len(self.claims) > 0 and run.slots[Tier.DEVICE] is None
        return run.claimed or (hole and self.claims.within(run))

    def _spans(self, chain: list[tuple[Run, int]], tail: Run | None) -> tuple[Span, ...]:
        spans: list[Span] = []
        start = 0
        for run, matched in [*chain, (tail, 1)] if tail is not None else chain:
            stop = start + (matched - 1) * self.page_size + run.fill
            tiers = () if run.claimed else tuple(tier for tier in self.pools if run.slots[tier] is not None)
            if spans and spans[-1].tiers == tiers:
                spans[-1] = Span(spans[-1].start, stop, tiers)
            else:
                spans.append(Span(start, stop, tiers))
            start = stop
        return tuple(spans)

    def pinned_by(self, match: Match, tokens: int) -> int:
        """Evictable device pages that acquiring the first ``tokens`` tokens of ``match`` would pin."""
        pages = 0
        for run, matched in [*match.chain, *([(match.tail, 1)] if match.tail else [])]:
            if run.start * self.page_size < tokens and not run.pins and run.slots[Tier.DEVICE] is not None:
                pages += min(matched, -(-tokens // self.page_size) - run.start)
        return pages

    # --- holding ------------------------------------------------------------------------------------------------

    def acquire(self, match: Match, tokens: int, conversation: int, keys: Keys, *, first: bool = True) -> Lease:
        """Pin the pages of ``match`` that hold its first ``tokens`` tokens, holes between them included.

        ``match`` must be fresh: no page may have left since the lookup. ``first``: the request was not admitted before,
        so that this is a use. ``keys`` are those of the context's full pages: the first that is not held is claimed, so
        that nobody else computes it meanwhile.
        """
        self._advance()
        lease = Lease(conversation, self.tree.root, keys)
        for run, matched in match.chain:
            wanted = min(matched, -(-tokens // self.page_size) - run.start)
            if wanted <= 0:
                break
            self._hold(lease, self._split(run, wanted) if wanted < run.pages else run)
        if first:
            for run in reversed(list(lease.leaf.chain())):
                self._touch(run, conversation)
        if match.tail is not None and match.tail.start * self.page_size < tokens:
            self._take_tail(lease, match.tail)
        self.leases.add(lease)
        self.device.eviction.wanted(np.concatenate([*(hole.keys for hole in lease.holes), keys[lease.published :]]))
        self.claims.take(lease)
        return lease

    def _hold(self, lease: Lease, run: Run) -> None:
        self._pin(lease, run)
        slots = run.slots[Tier.DEVICE]
        if slots is None:
            run.claimed = True
            lease.holes.append(run)
        else:
            lease.table[run.start : lease.published] = slots

    def _pin(self, lease: Lease, run: Run) -> None:
        if not run.pins:
            self._count_evictable(run, -1)
        run.pins += 1
        run.last_use = self.tick
        lease.leaf, lease.published = run, run.start + run.pages
        lease.reserve(lease.published)

    def _touch(self, run: Run, conversation: int) -> None:
        """A request uses ``run``; the return of a suspended one is no new use."""
        run.uses += 1
        run.shared |= run.conversation != conversation
        run.conversation = conversation
        for pool in self.pools.values():
            if run.slots[pool.tier] is not None:
                pool.eviction.accessed(run)

    def _take_tail(self, lease: Lease, tail: Run) -> None:
        """The partial page leaves the tree: from now on the request alone writes to it."""
        slots = tail.slots[Tier.DEVICE]
        if slots is not None:
            self.device.eviction.accessed(tail)
            self._count_evictable(tail, -1)
            self._leave(self.device, tail, evicted=False)
            self.tree.prune(tail)
            lease.reserve(tail.start + 1)
            lease.table[tail.start] = slots[0]

    def missing_pages(self, lease: Lease | None, start: int, stop: int) -> int:
        """Pages that the tokens ``start`` .. ``stop`` still need."""
        first, last = start // self.page_size, -(-stop // self.page_size)
        if lease is None or first >= len(lease.table):
            return max(0, last - first)
        return last - first - int(np.count_nonzero(lease.table[first:last] >= 0))

    def held_alone(self, lease: Lease) -> int:
        """Device pages that become available when ``lease`` is released."""
        pages = len(lease.own_slots())
        for run in lease.leaf.chain():
            if run.pins > 1:
                break
            pages += run.pages if run.slots[Tier.DEVICE] is not None else 0
        return pages

    def extend(self, lease: Lease, start: int, stop: int) -> None:
        """Give ``lease`` a slot for every page of the tokens ``start`` .. ``stop``, making room by eviction.

        Raises
        ------
        OutOfPages
            Nothing has changed then but what was evicted.
        """
        first, last = start // self.page_size, -(-stop // self.page_size)
        lease.reserve(last)
        empty = np.flatnonzero(lease.table[first:last] < 0) + first
        if not empty.size:
            return
        self.make_room(Tier.DEVICE, len(empty))
        lease.table[empty] = self.device.take(len(empty))
        while lease.holes and lease.holes[0].start < last:
            self._fill_hole(lease, last)

    def _fill_hole(self, lease: Lease, last: int) -> None:
        hole = lease.holes[0]
        if hole.start + hole.pages > last:
            hole = self._split(hole, last - hole.start)
        else:
            lease.holes.pop(0)
        lease.filling.append(hole)
        hole.inserted, hole.uses = self.tick, 1
        set_slots(hole, Tier.DEVICE, lease.table[hole.start : hole.start + hole.pages].copy())
        self.device.eviction.inserted(hole, hole.pages)

    def publish(self, lease: Lease, log: TokenLog, computed_tokens: int) -> None:
        """Put the full pages among the first ``computed_tokens`` tokens, all computed, into the tree.

        A page that was stored by someone else meanwhile is merged: the lease continues on the stored one.
        """
        pages = computed_tokens // self.page_size
        while lease.filling and lease.filling[0].start + lease.filling[0].pages <= pages:
            lease.filling.pop(0).claimed = False
        if lease.private or pages <= lease.published:
            return
        self.claims.drop(lease)
        keys = log.page_keys(self.page_size, computed_tokens)
        while lease.published < pages and (run := lease.leaf.children.get(int(keys[lease.published]))) is not None:
            if run.claimed:  # someone is filling this hole: what we have stays our own
                lease.private = True
                return
            matched = common_pages(run.keys, keys[lease.published :])
            self._merge(lease, self._split(run, matched) if matched < run.pages else run)
        if pages > lease.published:
            self._insert(lease, keys[lease.published : pages])
        self.claims.take(lease)

    def _merge(self, lease: Lease, run: Run) -> None:
        own = lease.table[run.start : run.start + run.pages].copy()
        self._pin(lease, run)
        stored = run.slots[Tier.DEVICE]
        if stored is None:
            run.inserted, run.uses = self.tick, 1
            set_slots(run, Tier.DEVICE, own)
            self.device.eviction.inserted(run, run.pages)
        else:
            lease.table[run.start : lease.published] = stored
            self.device.give(own)

    def _insert(self, lease: Lease, keys: Keys) -> None:
        leaf, start, stop = lease.leaf, lease.published, lease.published + len(keys)
        slots = lease.table[start:stop].copy()
        if self._grows(leaf):
            old = leaf.slots[Tier.DEVICE]
            assert old is not None
            leaf.keys = np.concatenate([leaf.keys, keys])
            leaf.slots[Tier.DEVICE] = np.concatenate([old, slots])
            run = leaf
        else:
            run = self.tree.add(leaf, np.array(keys), start, lease.conversation, self.tick)
            run.pins = 1
            set_slots(run, Tier.DEVICE, slots)
        lease.leaf, lease.published = run, stop
        self.device.eviction.inserted(run, len(keys))

    def _grows(self, leaf: Run) -> bool:
        """True if ``leaf`` was made by the one request that holds it, so that new pages belong to the same run."""
        alone = leaf.parent is not None and leaf.pins == 1 and leaf.uses == 1 and not (leaf.children or leaf.tails)
        return alone and all((leaf.slots[tier] is not None) == (tier is Tier.DEVICE) for tier in self.pools)

    def release(self, lease: Lease, log: TokenLog, computed_tokens: int, keep: Keep) -> None:
        """The request is done or suspended, ``computed_tokens`` tokens are computed; keep what ``keep`` says."""
        self._advance()
        if keep != "nothing":
            self.publish(lease, log, computed_tokens)
        self.claims.drop(lease)
        fill = computed_tokens - lease.published * self.page_size
        if keep == "tokens" and 0 < fill < self.page_size and not lease.private:
            self._keep_tail(lease, log, computed_tokens, fill)
        own = lease.own_slots()
        if len(own):
            self.device.give(own)
        for run in list(lease.leaf.chain()):
            self._unpin(run)
        self.leases.remove(lease)

    def _keep_tail(self, lease: Lease, log: TokenLog, tokens: int, fill: int) -> None:
        old = lease.leaf.tails.get(lease.conversation)
        if old is not None:
            self._count_evictable(old, -1)
            self._leave(self.device, old, evicted=False, free=True)
            self.tree.prune(old)
        page, key = lease.published, log.tail_key(self.page_size, tokens)
        tail = self.tree.add_tail(lease.leaf, key, page, fill, lease.conversation, self.tick)
        set_slots(tail, Tier.DEVICE, lease.table[page : page + 1].copy())
        lease.table[page] = -1
        self.device.eviction.inserted(tail, 1)
        self._count_evictable(tail, 1)
        self.device.eviction.released(tail)

    def _unpin(self, run: Run) -> None:
        run.pins -= 1
        if run.claimed:  # its holder gave up before it was computed
            run.claimed = False
            if run.slots[Tier.DEVICE] is not None:
                self._leave(self.device, run, evicted=False, free=True)
        if run.pins:
            return
        run.last_use = self.tick
        self._count_evictable(run, 1)
        for pool in self.pools.values():
            if run.slots[pool.tier] is not None:
                pool.eviction.released(run)
        self.tree.prune(run)

    # --- making room --------------------------------------------------------------------------------------------

    def make_room(self, tier: Tier, pages: int) -> None:
        """Evict until ``pages`` slots of ``tier`` are free.

        Raises
        ------
        OutOfPages
            If the free and evictable pages do not suffice; nothing was evicted then.
        """
        pool = self.pools[tier]
        if pages > self.available(tier):
            raise OutOfPages(f"{pages} pages wanted, {self.available(tier)} of {pool.capacity} can be had")
        if pages > pool.free_pages:
            for victim in pool.eviction.victims(pages - pool.free_pages):
                self._evict(pool, victim)
                if pages <= pool.free_pages:
                    return
            if pages > pool.free_pages:
                raise RuntimeError(f"eviction policy {pool.eviction.name!r} named too few victims")

    def _evict(self, pool: TierPool, victim: Victim) -> None:
        run = victim.run
        assert isinstance(run, Run)
        cuts = pool.leaves_only and victim.end == "head" and victim.pages < run.pages
        if cuts or not pool.evictable(run) or not 0 < victim.pages <= run.pages:
            raise RuntimeError(f"eviction policy {pool.eviction.name!r} named pages that may not leave")
        if victim.pages < run.pages:
            keep = run.pages - victim.pages if victim.end == "tail" else victim.pages
            upper = self._split(run, keep)
            run = run if victim.end == "tail" else upper
        pool.evicted_pages += run.pages
        self._count_evictable(run, -1, pool)
        self._leave(pool, run, evicted=True, free=True)
        self.tree.prune(run)

    def _leave(self, pool: TierPool, run: Run, *, evicted: bool, free: bool = False) -> None:
        slots = run.slots[pool.tier]
        assert slots is not None
        if free:
            pool.give(slots)
        set_slots(run, pool.tier, None)
        pool.eviction.removed(run, evicted)

    # --- bookkeeping --------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        self.tick += 1
        for pool in self.pools.values():
            pool.tick = self.tick

    def _split(self, run: Run, pages: int) -> Run:
        upper = self.tree.split(run, pages)
        for pool in self.pools.values():
            if upper.slots[pool.tier] is not None:
                pool.eviction.split(upper, run)
        return upper

    def _count_evictable(self, run: Run, sign: int, only: TierPool | None = None) -> None:
        for pool in self.pools.values() if only is None else (only,):
            if run.slots[pool.tier] is not None:
                pool.evictable_pages += sign * run.pages

    def check(self) -> None:
        """Raise AssertionError unless every invariant holds. O(pages)."""
        check_store(self)
