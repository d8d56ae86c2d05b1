"""Offers: what admitting a waiting request would take, and taking it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .memory import Match, PageStore
from .metrics.records import RequestRecord
from .narrowed import NarrowedContexts
from .policy import Costs, Offer, Prefetch, Range, Residency, RestorePlan, Tier
from .request import Missing, Request


@dataclass(slots=True)
class Admission:
    """Makes offers from the store's residency and the restore plan of ``prefetch``."""

    store: PageStore
    prefetch: Prefetch
    costs: Costs
    narrowed: NarrowedContexts
    _fresh: dict[int, tuple[Match, Offer]] = field(default_factory=dict)  # by request, as long as nothing has changed

    def offer(self, request: Request) -> Offer:
        """What ``request`` would take now. Changes nothing."""
        match = self._match(request)
        offer = self._offer(request, match)
        self._fresh[request.id] = match, offer
        return offer

    def changed(self) -> None:
        """The store has changed since the last offer."""
        self._fresh.clear()

    def _match(self, request: Request) -> Match:
        if self.narrowed.active and (log := request.narrowed) is not None:
            return self.narrowed.match(request, log)
        return self.store.lookup(request.log, self._stored_tokens(request), request.conversation)

    def _stored_tokens(self, request: Request) -> int:
        return 0 if self.prefetch.reuses == "nothing" else request.known_tokens

    def _offer(self, request: Request, match: Match) -> Offer:
        plan = self.prefetch.restore(request, match.residency, self.costs)
        if self.narrowed.active:
            plan = all_that_is_there(plan, match.residency, request.known_tokens)
        check_plan(plan, request.known_tokens, self.prefetch.name)
        check_loads(plan, match.residency, self.prefetch.name)
        missing = tuple([(r.start, r.stop) for r in plan.ranges if r.action == "recompute"])
        page = self.store.page_size
        loads = sum([-(-r.stop // page) - r.start // page for r in plan.ranges if r.action == "load"])
        pinned = self.store.pinned_by(match, used_tokens(plan))
        return Offer(request, plan, missing, pinned, page, match.blocked, loads)

    def accept(self, request: Request) -> Offer | None:
        """Lease what ``request`` reuses and set what it misses; None if another request computes the same pages now."""
        if request.id not in self._fresh:
            self.offer(request)
        match, offer = self._fresh.pop(request.id)
        if offer.blocked:
            return None
        self.changed()
        keys = request.log.page_keys(self.store.page_size, self._stored_tokens(request))
        first = request.record.scheduled_s < 0
        lease = self.store.acquire(match, used_tokens(offer.restore), request.conversation, keys, first=first)
        request.lease = lease
        request.expect([self._missing(request, offer, start, stop) for start, stop in offer.missing])
        return offer

    def note(self, request: Request, offer: Offer, now: float) -> None:
        """Record when ``request`` was scheduled and what became of its reusable tokens, at its first admission."""
        record = request.record
        computed = max(record.reusable_tokens - record.dropped, request.computed_before)
        request.recompute_left = _missing_below(offer, computed)
        if record.scheduled_s < 0:
            record.scheduled_s = now
        if not request.counted:
            request.counted = True
            self._count_reuse(record, offer)
        else:
            record.preempted += _missing_below(offer, request.computed_before)

    def _count_reuse(self, record: RequestRecord, offer: Offer) -> None:
        page = self.store.page_size
        limit = record.reusable_tokens - record.dropped
        by_tier = dict.fromkeys(Tier, 0)
        for part in offer.restore.ranges:
            if part.action != "recompute":
                by_tier[part.tier] += max(0, min(part.stop, limit) - part.start)
        record.reused_device, record.reused_host = by_tier[Tier.DEVICE], by_tier[Tier.HOST]
        record.reused_disk, record.reused_remote = by_tier[Tier.DISK], by_tier[Tier.REMOTE]
        reused = sum(by_tier.values())
        record.recomputed = limit - reused
        record.reusable_pages, record.reused_pages = record.reusable_tokens // page, min(reused, limit) // page

    def _missing(self, request: Request, offer: Offer, start: int, stop: int) -> Missing:
        """Ranges are on page boundaries or in the request's own tail page, but for queries of pages that are stored."""
        page = self.store.page_size
        stored = stop <= request.held.published * page
        resident = request.held.table[start // page] >= 0 if stored else False
        first = start // page * page
        loaded = any(r.action == "load" and r.start <= first < r.stop for r in offer.restore.ranges)
        return Missing(start, stop, write=not (stored and (resident or loaded)))


def _missing_below(offer: Offer, limit: int) -> int:
    """Tokens of the context before ``limit`` that have to be computed."""
    return sum([max(0, min(stop, limit) - start) for start, stop in offer.missing])


def used_tokens(plan: RestorePlan) -> int:
    """How far into the context ``plan`` reaches with what is stored."""
    return max([r.stop for r in plan.ranges if r.action != "recompute"], default=0)


def all_that_is_there(plan: RestorePlan, residency: Residency, known_tokens: int) -> RestorePlan:
    """``plan``, but that all of ``residency`` comes back: a narrowed context is of use only whole."""
    ranges: list[Range] = []
    for span in residency.spans:
        if not span.tiers:
            break
        tier = min(span.tiers)
        ranges.append(Range(span.start, span.stop, "use" if tier == Tier.DEVICE else "load", tier))
    stored = ranges[-1].stop if ranges else 0
    return replace(plan, ranges=(*ranges, Range(stored, known_tokens, "recompute")))


def check_plan(plan: RestorePlan, known_tokens: int, name: str) -> None:
    """Raise RuntimeError unless the ranges of ``plan`` cover the context once and its last token is computed."""
    end = 0
    for part in plan.ranges:
        if part.start != end or part.stop <= part.start:
            raise RuntimeError(f"prefetch policy {name!r}: range {_text(part)} does not follow token {end}")
        end = part.stop
    if end != known_tokens or plan.ranges[-1].action != "recompute":
        raise RuntimeError(f"prefetch policy {name!r}: {known_tokens} tokens wanted, the last one computed; got {end}")


def check_loads(plan: RestorePlan, residency: Residency, name: str) -> None:
    """Raise RuntimeError unless what is used is on the device, what is loaded in its tier but not on the device, and
    loads begin on a page boundary."""
    spans = iter(residency.spans)
    span = next(spans, None)
    for part in plan.ranges:
        if part.action == "recompute":
            continue
        aligned = part.action == "use" or part.start % residency.page_size == 0
        done = part.start
        while aligned and done < part.stop and span is not None:
            if span.stop <= done:
                span = next(spans, None)
                continue
            if part.tier not in span.tiers or (part.action == "use") != (Tier.DEVICE in span.tiers):
                break
            done = span.stop
        if done < part.stop:
            raise RuntimeError(f"prefetch policy {name!r}: {_text(part)} from {part.tier.name.lower()} is not there")


def _text(part: Range) -> str:
    return f"{part.action} {part.start}..{part.stop}"
