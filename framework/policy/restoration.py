"""How missing history comes back: residency, restore plans, offers, and the family ``prefetch``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from .base import Policy, Tier
from .views import Costs, QueueView, RequestView, TierView


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


Loading = Literal["layers", "blocking", "before"]


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """Ranges in order covering 0 .. known tokens; the engine refuses a plan that does not.

    ``loading`` says how loads and computing overlap: ``layers``: layer i of the iteration waits for layer i of the
    loads; ``blocking``: the iteration waits for all loads; ``before``: the request joins an iteration once its loads
    have arrived, others go on meanwhile. What comes from disk is always loaded ``before``. Loads start on page
    boundaries and end on one or with the context's partial tail.
    """

    ranges: tuple[Range, ...]
    loading: Loading = "layers"

    @property
    def deferred(self) -> bool:
        """The request joins an iteration only after its loads."""
        tiers = [part.tier for part in self.ranges if part.action == "load"]
        return bool(tiers) and (self.loading == "before" or max(tiers) > Tier.HOST)


@dataclass(frozen=True, slots=True)
class Offer:
    """What admitting a waiting request would take now. Read-only; the engine remakes it when it is accepted.

    ``missing``: token ranges to compute before the first output token, in order. ``load_pages``: device pages that its
    loads fill. ``pinned_pages``: resident pages that stop being evictable. ``blocked``: another request is computing
    or loading the same pages, or they are being fetched; admitting now would do it twice, and the engine defers the
    request instead.
    """

    request: RequestView
    restore: RestorePlan
    missing: tuple[tuple[int, int], ...]
    pinned_pages: int
    page_size: int
    blocked: bool = False
    load_pages: int = 0

    @property
    def deferred(self) -> bool:
        """Its loads come first: it takes part in this iteration with no token."""
        return self.restore.deferred

    @property
    def compute_tokens(self) -> int:
        """Tokens to compute before the first output token."""
        return sum([stop - start for start, stop in self.missing])

    def pages_for(self, tokens: int) -> int:
        """New device pages for its loads and the first ``tokens`` of the missing tokens."""
        pages = self.load_pages
        for start, stop in self.missing:
            end = min(stop, start + tokens)
            pages += -(-end // self.page_size) - -(-start // self.page_size)
            tokens -= end - start
            if not tokens:
                break
        return pages

    @property
    def pages(self) -> int:
        """New device pages for all loads and missing tokens."""
        return self.pages_for(self.compute_tokens)


class Prefetch(Policy, ABC):
    """How missing history comes back.

    ``restore`` plans one request's history when it is admitted; ``ahead`` moves waiting requests' history from disk to
    host before. ``reuses`` says what the system keeps between turns: ``nothing`` (pages are freed when a request ends),
    ``pages`` (full pages only) or ``tokens`` (partial tail pages of the same conversation too). ``holes`` says whether
    ``restore`` can use what lies behind a hole; if not, only leaves are evictable.
    """

    family: ClassVar[str] = "prefetch"
    reuses: ClassVar[Literal["nothing", "pages", "tokens"]] = "pages"
    holes: ClassVar[bool] = False

    @abstractmethod
    def restore(self, request: RequestView, residency: Residency, costs: Costs) -> RestorePlan:
        """Cover 0 .. ``request.known_tokens`` with ranges; at least the last token must be computed."""

    def ahead(self, queue: QueueView, host: TierView) -> Iterable[RequestView]:
        """Waiting requests whose history is to be fetched from disk to host now, most urgent first. Asked once per
        iteration where both tiers exist; asking again for what is under way is a no-op."""
        return ()

    def fetches(self, tokens: int) -> bool:
        """Whether it is worth fetching ``tokens`` from disk for a request that ``ahead`` named."""
        return True

    def patience_s(self, tokens: int) -> float:
        """How long a request whose turn has come waits for a fetch of ``tokens`` that was started for it; then what has
        not begun is called off and the request goes on with what is there."""
        return math.inf

    def early_layers(self, layers: int, load_s: float, compute_s: float) -> int:
        """How many of ``layers`` layers of a waiting request's history may be loaded into the device before its
        iteration begins (CachedAttention's read buffer), where loading takes ``load_s`` and computing ``compute_s``."""
        return 0
