"""Looking: what the store knows of a context. Changes nothing."""

from __future__ import annotations

from ..policy import Residency, Span, Tier
from ..workloads.tokens import TokenLog
from .claims import Claims
from .lease import Match
from .pages import Pages
from .run import Run


def find(pages: Pages, claims: Claims, log: TokenLog, known_tokens: int, conversation: int) -> Match:
    """The residency of the first ``known_tokens`` tokens of ``log``, holes included. O(runs)."""
    keys = log.page_keys(pages.page_size, known_tokens)
    chain = pages.tree.walk(keys)
    end = chain[-1][0] if chain else pages.tree.root
    whole = not chain or chain[-1][1] == end.pages
    tail = pages.tree.tail_of(end, conversation, log, known_tokens) if whole else None
    matched = sum(count for _, count in chain)
    own = end.tails.get(conversation) if whole else None
    blocked = any(_being_filled(claims, run) for run, _ in chain) or (own is not None and own.claimed)
    blocked |= matched < len(keys) and int(keys[matched]) in claims
    residency = Residency(_spans(pages, chain, tail), pages.page_size)
    following = int(keys[matched]) if whole and matched < len(keys) else None
    return Match(chain, tail, residency, blocked, end if whole else None, following, own)


def evictable_pages(match: Match, page_size: int, tokens: int) -> int:
    """Evictable device pages that holding the first ``tokens`` tokens of ``match`` would pin."""
    pages = 0
    for run, matched in [*match.chain, *([(match.tail, 1)] if match.tail else [])]:
        if run.start * page_size < tokens and not run.pins and run.slots[Tier.DEVICE] is not None:
            pages += min(matched, -(-tokens // page_size) - run.start)
    return pages


def _being_filled(claims: Claims, run: Run) -> bool:
    hole = len(claims) > 0 and run.slots[Tier.DEVICE] is None
    return run.claimed or (hole and claims.within(run))


def _spans(pages: Pages, chain: list[tuple[Run, int]], tail: Run | None) -> tuple[Span, ...]:
    spans: list[Span] = []
    start = 0
    for run, matched in [*chain, (tail, 1)] if tail is not None else chain:
        stop = start + (matched - 1) * pages.page_size + run.fill
        tiers = () if run.claimed else tuple(tier for tier in pages.pools if run.slots[tier] is not None)
        if spans and spans[-1].tiers == tiers:
            spans[-1] = Span(spans[-1].start, stop, tiers)
        else:
            spans.append(Span(start, stop, tiers))
        start = stop
    return tuple(spans)
