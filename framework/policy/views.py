"""What policies may look at. Read-only, and without the future."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .base import Tier


class RunView(Protocol):
    """A run: consecutive pages of one chain with equal residency, pins and last use. Read-only for policies.

    ``start`` is the index of its first page in the context, ``pages`` its length, ``last_use`` and ``inserted`` ticks,
    ``uses`` how many requests used it (its insertion counts as one), ``conversation`` the one that used it last,
    ``keys`` the int64 content keys of its pages, shape [pages].
    """

    @property
    def parent(self) -> RunView | None: ...
    @property
    def keys(self) -> NDArray[np.int64]: ...
    @property
    def start(self) -> int: ...
    @property
    def pages(self) -> int: ...
    @property
    def last_use(self) -> int: ...
    @property
    def inserted(self) -> int: ...
    @property
    def uses(self) -> int: ...
    @property
    def conversation(self) -> int: ...
    @property
    def shared(self) -> bool:
        """More than one conversation used it."""
        ...

    def held_by(self, tier: Tier) -> bool:
        """``tier`` holds a copy of it (or will, once a copy on its way has arrived)."""
        ...


class TierView(Protocol):
    """What a policy may ask about a tier of the store.

    Pages of a tier are free, spare (a tier below holds a copy too and the policy gave them up ahead of time: they are
    reclaimed first, at no cost, unless they are used before), or in the policy's order.
    """

    @property
    def tier(self) -> Tier:
        """Which tier it is."""
        ...

    @property
    def capacity(self) -> int:
        """Pages the tier holds."""
        ...

    @property
    def free_pages(self) -> int:
        """Pages that hold nothing."""
        ...

    @property
    def spare_pages(self) -> int:
        """Pages that can be reclaimed at no cost."""
        ...

    @property
    def capacity_below(self) -> int:
        """Pages that all lower tiers of this instance hold together."""
        ...

    @property
    def queue(self) -> QueueView:
        """Who waits: scheduler-aware policies look ahead in it."""
        ...

    @property
    def tick(self) -> int:
        """The current logical time."""
        ...

    @property
    def now_s(self) -> float:
        """The run's clock, for times to live only: order and recency are logical (``tick``)."""
        ...

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        ...

    @property
    def leaves_only(self) -> bool:
        """True where the system uses only leading runs, so that pages must leave from the end of a context."""
        ...

    @property
    def costs(self) -> Costs:
        """What recomputing and loading cost."""
        ...

    def evictable(self, run: RunView) -> bool:
        """True if ``run`` may be named as a victim now: resident here, not pinned, and, where the system can use only
        leading runs (``Prefetch.holes`` False), without a resident child."""
        ...


class QueueView(Protocol):
    """Requests that have arrived and are not being served, in the order of the queue."""

    def position(self, conversation: int) -> int | None:
        """How many arrivals lie between the head of the queue and the first waiting request of ``conversation``; None
        if none waits. O(1)."""
        ...

    def conversations(self) -> Iterator[int]:
        """The conversations of waiting requests by position, those at the same one by number. Not to be used any more
        once the queue has changed."""
        ...

    def head(self, limit: int) -> Iterator[RequestView]:
        """The first ``limit`` waiting requests."""
        ...


class Future(Protocol):
    """What only an oracle sees."""

    def next_use(self, run: RunView) -> float:
        """When ``run`` will next be asked for, in seconds of the run's clock; ``inf`` if never."""
        ...


class Costs(Protocol):
    """Recompute, load and copy costs in seconds; both backends fill it, so that policies and simulator agree."""

    def recompute_s(self, start: int, stop: int) -> float:
        """Time to compute the tokens ``start`` .. ``stop`` of a context, given everything before them."""
        ...

    def load_s(self, tokens: int, tier: Tier) -> float:
        """Time to bring ``tokens`` from ``tier`` to the device over an idle link."""
        ...


class RequestView(Protocol):
    """A request as a policy sees it. ``known_tokens`` = input + generated so far; ``computed_tokens`` have K/V."""

    @property
    def id(self) -> int: ...
    @property
    def conversation(self) -> int: ...
    @property
    def turn(self) -> int: ...
    @property
    def arrival_s(self) -> float: ...
    @property
    def order(self) -> int:
        """Position in arrival order: unique, smaller is earlier."""
        ...

    @property
    def input_tokens(self) -> int: ...
    @property
    def generated_tokens(self) -> int: ...
    @property
    def known_tokens(self) -> int: ...
    @property
    def missing_tokens(self) -> int:
        """Tokens to compute before the next output token: 1 while decoding, more in prefill; 0 only when finished."""
        ...
