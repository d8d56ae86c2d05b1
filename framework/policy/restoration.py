"""How missing history comes back: residency, restore plans, offers, and the family ``prefetch``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from .base import Policy, Tier
from .views import Costs, RequestView


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens ``start`` .. ``stop`` of a context and the tiers that hold them (empty: a hole)."""

    start: int
    stop: int
    tiers: tuple[Tier, ...]


@dataclass(frozen=True, slots=True)
class Residency:
    """The whole row of a context: spans in order, without gaps, from 0 to ``tokens``; the last may be a partial tail
    page.

    ``page_size`` is given so that a policy can cut on page boundaries; what lies beyond the last span was never stored.
    """

    spans: tuple[Span, ...]
    page_size: int

    @property
    def tokens(self) -> int:
        """How far the row reaches."""
        return self.spans[-1].stop if self.spans else 0

    def leading(self, tier: Tier) -> int:
        """Tokens of the leading run held by ``tier``."""
        n = 0
        for span in self.spans:
            if tier not in span.tiers:
                break
            n = span.stop
        return n


Action = Literal["use", "load", "recompute"]


@dataclass(frozen=True, slots=True)
class Range:
    """What to do with the tokens ``start`` .. ``stop``; ``tier`` says where they are loaded from or used."""

    start: int
    stop: int
    action: Action
    tier: Tier = Tier.DEVICE


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """Ranges in order covering 0 .. known tokens; the engine refuses a plan that does not."""

    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """What admitting a waiting request would take now. Read-only; the engine remakes it when it is accepted.

    ``missing``: token ranges to compute before the first output token, in order. ``pinned_pages``: resident pages that
    stop being evictable. ``blocked``: another request is computing the same pages; admitting now would compute them
    twice, and the engine defers the request instead.
    """

    request: RequestView
    restore: RestorePlan
    missing: tuple[tuple[int, int], ...]
    pinned_pages: int
    page_size: int
    blocked: bool = False

    @property
    def compute_tokens(self) -> int:
        """Tokens to compute before the first output token."""
        return sum(stop - start for start, stop in self.missing)

    def pages_for(self, tokens: int) -> int:
        """New device pages for the first ``tokens`` of them."""
        pages = 0
        for start, stop in self.missing:
            end = min(stop, start + tokens)
            pages += -(-end // self.page_size) - -(-start // self.page_size)
            tokens -= end - start
            if not tokens:
                break
        return pages

    @property
    def pages(self) -> int:
        """New device pages for all of them."""
        return self.pages_for(self.compute_tokens)


class Prefetch(Policy, ABC):
    """How missing history comes back.

    ``reuses`` says what the system keeps between turns: ``nothing`` (pages are freed when a request ends), ``pages``
    (full pages only) or ``tokens`` (partial tail pages of the same conversation too). ``holes`` says whether
    ``restore`` can use what lies behind a hole; if not, only leaves are evictable.
    """

    family: ClassVar[str] = "prefetch"
    reuses: ClassVar[Literal["nothing", "pages", "tokens"]] = "pages"
    holes: ClassVar[bool] = False

    @abstractmethod
    def restore(self, request: RequestView, residency: Residency, costs: Costs) -> RestorePlan:
        """Cover 0 .. ``request.known_tokens`` with ranges; at least the last token must be computed."""
