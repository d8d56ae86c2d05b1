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
    matched = end.start + chain[-1][1] if chain else 0
    own = end.tails.get(conversation) if whole and end.tails else None
    next_key = int(keys[matched]) if matched < len(keys) else None
    blocked = next_key in claims or (own is not None and own.claimed) or _being_filled(claims, chain)
    residency = Residency(_spans(pages, chain, tail), pages.page_size)
    if not whole:
        return Match(chain, tail, residency, blocked)
    return Match(chain, tail, residency, blocked, end, next_key, own)


def evictable_pages(match: Match, page_size: int, tokens: int) -> int:
    """Evictable device pages that holding the first ``tokens`` tokens of ``match`` would pin."""
    pages = 0
    for run, matched in [*match.chain, *([(match.tail, 1)] if match.tail else [])]:
        if run.start * page_size < tokens and not run.pins and run.slots[Tier.DEVICE] is not None:
            pages += min(matched, -(-tokens // page_size) - run.start)
    return pages


def _being_filled(claims: Claims, chain: list[tuple[Run, int]]) -> bool:
    holes = [run for run, _ in chain if run.claimed or run.slots[Tier.DEVICE] is None]
    return any(run.claimed or (len(claims) > 0 and claims.within(run)) for run in holes)


def _spans(pages: Pages, chain: list[tuple[Run, int]], tail: Run | None) -> tuple[Span, ...]:
    spans: list[Span] = []
    start, size = 0, pages.page_size
    for run, matched in [*chain, (tail, 1)] if tail is not None else chain:
        stop = start + (matched - 1) * size + run.fill
        tiers = () if run.claimed else pages.tiers_of(run)
        if spans and spans[-1].tiers == tiers:
            spans[-1] = Span(spans[-1].start, stop, tiers)
        else:
            spans.append(Span(start, stop, tiers))
        start = stop
    return tuple(spans)
