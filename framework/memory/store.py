"""The page store: which pages exist, where they are, who holds them. It owns every counter, pin and free list.

Full pages are shared by content; a partial tail page belongs to its conversation. The store moves no data: a slot is a
number, whoever computes writes to it, and what must be copied between tiers is in ``outbox``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ..policy import Costs, Eviction, Future, QueueView, Tier, Writeback
from ..workloads.tokens import TokenLog
from .check import check_store
from .claims import Claims
from .cutting import cut
from .fetching import Fetches
from .lease import Lease, Match
from .lookup import evictable_pages, find
from .pages import Pages
from .recovery import adopt, lose
from .room import OutOfPages, Room
from .run import Keys, Run, Slots, common_pages
from .tails import keep_tail, load_rest_of_tail, load_tail, put_back_tail, take_tail
from .tree import set_slots

SPARE_PAGES = 32  # of a lease's table, for what is generated

Keep = Literal["nothing", "pages", "tokens"]

__all__ = ["Keep", "OutOfPages", "PageStore"]


class PageStore:
    """Pages of ``page_size`` tokens in tiers.

    Parameters
    ----------
    page_size: tokens in a page, >= 1.
    capacity: pages of each tier; the device tier is needed.
    evictions: one eviction policy per tier, not shared.
    costs: what recomputing and loading cost, for policies that ask.
    writeback: what is copied down, and when.
    leaves_only: True where the system reuses only leading runs: a run with a resident child is not evictable.
    future: what an oracle may see.
    queue: who waits, for policies that look ahead.
    """

    def __init__(
        self,
        page_size: int,
        capacity: Mapping[Tier, int],
        evictions: Mapping[Tier, Eviction],
        *,
        costs: Costs,
        writeback: Writeback,
        leaves_only: bool = True,
        future: Future | None = None,
        queue: QueueView | None = None,
    ) -> None:
        self.pages = Pages(
            page_size, capacity, evictions, costs=costs, leaves_only=leaves_only, future=future, queue=queue
        )
        self.page_size = page_size
        self.tree, self.pools, self.device = self.pages.tree, self.pages.pools, self.pages.device
        self.outbox = self.pages.outbox
        self.writeback = writeback
        self.room = Room(self.pages, writeback)
        self.leases: set[Lease] = set()
        self.fetches = Fetches(self.pages, self.room)
        self.claims = Claims()
        self._copies_down = len(self.pools) > 1

    def available(self, tier: Tier = Tier.DEVICE) -> int:
        """Pages that are free or could be freed by eviction."""
        return self.pools[tier].available_pages

    def lookup(self, log: TokenLog, known_tokens: int, conversation: int) -> Match:
        """The residency of the first ``known_tokens`` tokens of ``log``, holes included. Changes nothing. O(runs)."""
        return find(self.pages, self.claims, log, known_tokens, conversation)

    def pinned_by(self, match: Match, tokens: int) -> int:
        """Evictable device pages that acquiring the first ``tokens`` tokens of ``match`` would pin."""
        return evictable_pages(match, self.page_size, tokens)

    def missing_pages(self, lease: Lease | None, start: int, stop: int) -> int:
        """Pages that the tokens ``start`` .. ``stop`` still need."""
        first, last = start // self.page_size, -(-stop // self.page_size)
        if lease is None or first >= len(lease.table):
            return max(0, last - first)
        return int(np.count_nonzero(lease.table[first:last] < 0)) + max(0, last - len(lease.table))

    def pages_wanted(self, lease: Lease, ranges: Sequence[tuple[int, int]]) -> int:
        """Pages without a slot among those of the token ``ranges``, each counted once."""
        pages = done = 0
        for start, stop in sorted(ranges):
            first = max(done, start // self.page_size)
            done = max(first, -(-stop // self.page_size))
            pages += self.missing_pages(lease, first * self.page_size, done * self.page_size)
        return pages

    def held_alone(self, lease: Lease) -> int:
        """Device pages that become available when ``lease`` is released."""
        pages = len(lease.own_slots())
        for run in lease.leaf.chain():
            if run.pins > 1:
                break
            pages += run.pages if run.slots[Tier.DEVICE] is not None else 0
        return pages

    def acquire(self, match: Match, tokens: int, conversation: int, keys: Keys, *, first: bool = True) -> Lease:
        """Pin the pages of ``match`` that hold its first ``tokens`` tokens, holes between them included.

        ``match`` must be fresh: no page may have left since the lookup. ``first``: the request was not admitted before,
        so that this is a use. ``keys`` are those of the context's full pages: the first that is not held is claimed, so
        that nobody else computes it meanwhile.
        """
        self.pages.advance()
        lease = Lease(conversation, self.tree.root, keys)
        lease.reserve(len(keys) + SPARE_PAGES)
        for run, matched in match.chain:
            wanted = min(matched, -(-tokens // self.page_size) - run.start)
            if wanted <= 0:
                break
            self._hold(lease, self.pages.split(run, wanted) if wanted < run.pages else run)
        if match.tail is not None and match.tail.start * self.page_size < tokens:
            take_tail(self.pages, lease, match.tail)
        if first:  # last, for it may copy pages down and so evict what nobody holds
            for run in reversed(list(lease.leaf.chain())):
                self._touch(run, conversation)
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
        self.pages.pin(run)
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
        if self._copies_down and run.slots[Tier.DEVICE] is not None:
            self._write_through(run)

    def load(
        self,
        lease: Lease,
        start: int,
        stop: int,
        source: Tier,
        request: int,
        layers: tuple[int, int] | None = None,
    ) -> None:
        """Bring the tokens ``start`` .. ``stop``, which ``source`` holds, into new device slots; there is room.

        They count as claimed until :meth:`loaded`. ``layers``: the first one and how many; what is left of them is for
        :meth:`load_rest`.
        """
        first, last = start // self.page_size, -(-stop // self.page_size)
        how = {"request": request, "urgent": True, "layers": layers}
        for run in self._holes_between(lease, first, last):
            slots = self.device.take(run.pages)
            lease.table[run.start : run.start + run.pages] = slots
            self.pages.copy(run, source, Tier.DEVICE, slots, "swap-in", **how)
            self.pages.enter(run, Tier.DEVICE, slots)
            lease.holes.remove(run)
            lease.loading.append(run)
        if lease.tail is not None and first <= lease.tail.page < last:
            load_tail(self.pages, lease, request, layers)

    def load_rest(self, lease: Lease, done: int, layers: int, request: int) -> None:
        """Load the layers from ``done`` up to ``layers`` of what ``lease`` loads from the host."""
        rest = (done, layers - done)
        if done < layers:
            for run in lease.loading:
                slots = run.slots[Tier.DEVICE]
                assert slots is not None
                how = {"request": request, "urgent": True, "layers": rest}
                self.pages.copy(run, Tier.HOST, Tier.DEVICE, slots, "swap-in", **how)
        if lease.tail is not None:
            load_rest_of_tail(self.pages, lease, request, rest if done < layers else None)

    def _holes_between(self, lease: Lease, first: int, last: int) -> list[Run]:
        """The holes of ``lease`` from page ``first`` to ``last``, cut at both."""
        found: list[Run] = []
        for hole in list(lease.holes):
            if hole.start < first < hole.start + hole.pages:
                lease.holes.insert(lease.holes.index(hole), self.pages.split(hole, first - hole.start))
            if hole.start < last < hole.start + hole.pages:
                upper = self.pages.split(hole, last - hole.start)
                lease.holes.insert(lease.holes.index(hole), upper)
                hole = upper
            if first <= hole.start < last:
                found.append(hole)
        return found

    def loaded(self, lease: Lease) -> None:
        """The loads of ``lease`` have arrived: others may use their pages."""
        for run in lease.loading:
            run.claimed = False
        lease.loading.clear()

    def lose(self, tier: Tier, slots: Slots, keys: Keys | None = None) -> int:
        """What lies in ``slots`` of ``tier`` is damaged: forget it there; returns how many pages were. O(runs).

        ``keys``: the pages that were damaged; a slot that holds another one by now is left alone.
        """
        return lose(self.pages, tier, slots, keys)

    def adopt(self, tier: Tier, slots: Slots, keys: Keys, parents: Keys) -> int:
        """Take over pages that an earlier run left in ``slots`` of ``tier``; returns how many could be placed.

        A page is placed below its parent, which must be among them (a context's first page has parent 0); partial
        tails, whose parent is their own key, are not.
        """
        return adopt(self.pages, tier, slots, keys, parents)

    def cut(self, keys: Keys, first: int, conversation: int, *, keep: bool) -> int:
        """Cut the first ``first`` pages off the context ``keys``; see :func:`.cutting.cut`."""
        return cut(self.pages, keys, first, conversation, keep=keep)

    # --- filling ------------------------------------------------------------------------------------------------

    def extend(self, lease: Lease, start: int, stop: int) -> None:
        """Give ``lease`` a slot for every page of the tokens ``start`` .. ``stop``, making room by eviction.

        Raises
        ------
        OutOfPages
            Nothing has changed then but what was evicted.
        """
        first, last = start // self.page_size, -(-stop // self.page_size)
        if first == last:
            return
        lease.reserve(last)
        wanted = lease.table[first:last]
        first += int(wanted[0] >= 0)  # the page in which the tokens begin is there, all others are not, but for holes
        if lease.holes or lease.tail is not None or (first < last and lease.table[first] >= 0):
            empty = np.flatnonzero(wanted < 0)
            if not empty.size:
                return
            self.room.make(Tier.DEVICE, len(empty))
            wanted[empty] = self.device.take(len(empty), computed=True)
        elif first < last:
            self.room.make(Tier.DEVICE, last - first)
            lease.table[first:last] = self.device.take(last - first, computed=True)
        while lease.holes and lease.holes[0].start < last:
            self._fill_hole(lease, last)

    def append(self, pages: Sequence[tuple[int, int, Lease]]) -> None:
        """Give each lease (third) a slot for its next page, of that number (second); raises as :meth:`extend` does."""
        self.room.make(Tier.DEVICE, len(pages))
        slots = self.device.take(len(pages), computed=True).tolist()
        for (_, page, lease), slot in zip(pages, slots, strict=True):
            if page >= len(lease.table):
                lease.reserve(page + 1)
            lease.table[page] = slot

    def _fill_hole(self, lease: Lease, last: int) -> None:
        hole = lease.holes[0]
        if hole.start + hole.pages > last:
            hole = self.pages.split(hole, last - hole.start)
        else:
            lease.holes.pop(0)
        lease.filling.append(hole)
        hole.inserted, hole.uses = self.pages.tick, 1
        self.pages.enter(hole, Tier.DEVICE, lease.table[hole.start : hole.start + hole.pages].copy())

    def publish(self, lease: Lease, log: TokenLog, computed_tokens: int) -> None:
        """Put the full pages among the first ``computed_tokens`` tokens, all computed, into the tree.

        A page that was stored by someone else meanwhile is merged: the lease continues on the stored one.
        """
        pages = computed_tokens // self.page_size
        while lease.filling and lease.filling[0].start + lease.filling[0].pages <= pages:
            filled = lease.filling.pop(0)
            filled.claimed = False
            self._write_through(filled)
        if lease.private or pages <= lease.published:
            return
        self.claims.drop(lease)
        keys = log.page_keys(self.page_size, computed_tokens)
        while lease.published < pages and (run := lease.leaf.children.get(int(keys[lease.published]))) is not None:
            if run.claimed:  # someone is filling this hole: what we have stays our own
                lease.private = True
                return
            matched = common_pages(run.keys, keys[lease.published :])
            self._merge(lease, self.pages.split(run, matched) if matched < run.pages else run)
        if pages > lease.published:
            self._insert(lease, keys[lease.published : pages])
        self.claims.take(lease)

    def _merge(self, lease: Lease, run: Run) -> None:
        own = lease.table[run.start : run.start + run.pages].copy()
        self._pin(lease, run)
        stored = run.slots[Tier.DEVICE]
        if stored is None:
            run.inserted, run.uses = self.pages.tick, 1
            self.pages.enter(run, Tier.DEVICE, own)
            self._write_through(run)
        else:
            lease.table[run.start : lease.published] = stored
            self.device.give(own)

    def _insert(self, lease: Lease, keys: Keys) -> None:
        leaf, start, stop = lease.leaf, lease.published, lease.published + len(keys)
        slots = lease.table[start:stop].copy()
        if self._grows(leaf):
            old = leaf.slots[Tier.DEVICE]
            assert old is not None
            leaf.rekey(np.concatenate([leaf.keys, keys]))
            leaf.slots[Tier.DEVICE] = np.concatenate([old, slots])
            leaf.stamp += 1
            run = leaf
        else:
            run = self.tree.add(leaf, np.array(keys), start, lease.conversation, self.pages.tick)
            run.pins = 1
            set_slots(run, Tier.DEVICE, slots)
        lease.leaf, lease.published = run, stop
        self.device.eviction.inserted(run, len(keys))
        self._write_through(run)

    def _grows(self, leaf: Run) -> bool:
        """True if ``leaf`` was made by the one request that holds it, so that new pages belong to the same run."""
        alone = leaf.pins == 1 and leaf.uses == 1 and leaf.held == 1 << Tier.DEVICE and leaf.parent is not None
        return alone and not (leaf.children or leaf.tails)

    def _write_through(self, run: Run) -> None:
        if self._copies_down and not self.pages.copied_below(run, Tier.DEVICE) and self.writeback.eager(run):
            self.room.save(run)

    # --- letting go ---------------------------------------------------------------------------------------------

    def release(self, lease: Lease, log: TokenLog, computed_tokens: int, keep: Keep) -> None:
        """The request is done or suspended, ``computed_tokens`` tokens are computed; keep what ``keep`` says."""
        self.pages.advance()
        if keep != "nothing":
            self.publish(lease, log, computed_tokens)
        self.claims.drop(lease)
        loaded = lease.tail is None
        put_back_tail(self.pages, lease)
        tail = None
        fill = computed_tokens - lease.published * self.page_size
        kept = keep == "tokens" and 0 < fill < self.page_size and not lease.private
        if kept and loaded and lease.table[lease.published] >= 0:
            tail = keep_tail(self.pages, lease, log.tail_key(self.page_size, computed_tokens), fill)
            if tail is not None:
                self._write_through(tail)
        own = lease.own_slots()
        if len(own):
            self.device.give(own)
        held = list(lease.leaf.chain())
        for run in held:
            self._unpin(run)
        self.leases.remove(lease)
        if self._copies_down and not self.writeback.keeps_device:
            self._vacate([tail, *held] if tail is not None else held)

    def _unpin(self, run: Run) -> None:
        if run.claimed and run not in self.fetches.runs:  # its holder gave up before it was computed or loaded
            run.claimed = False
            run.stamp += 1
            if run.slots[Tier.DEVICE] is not None:
                self.pages.leave(run, Tier.DEVICE, evicted=False)
        self.pages.unpin(run)

    def _vacate(self, runs: list[Run]) -> None:
        for run in runs:
            if not run.pins and run.slots[Tier.DEVICE] is not None:
                self.room.vacate(run)

    def copy_ahead(self) -> None:
        """Copy down in advance what ``writeback`` wants, tier by tier."""
        if not self._copies_down:
            return
        for tier, pool in self.pools.items():
            if self.pages.below(tier) is not None and (count := self.writeback.ahead(pool)) > 0:
                self.room.copy_ahead(tier, count)

    def check(self) -> None:
        """Raise AssertionError unless every invariant holds. O(pages)."""
        check_store(self)
