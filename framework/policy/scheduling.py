"""The family ``scheduling``: one iteration's plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from .base import Policy
from .restoration import Offer
from .views import RequestView


class DecodingView(Protocol):
    """The running requests that decode, as one: each misses one token. O(1)."""

    def __len__(self) -> int: ...

    @property
    def pages(self) -> int:
        """New device pages that one token for each of them needs."""
        ...

    @property
    def first(self) -> bool:
        """All of them were admitted before any other running request (False where that is not sure)."""
        ...


class SchedulerView(Protocol):
    """What the scheduler may look at. Nothing here is linear in the queue unless the policy walks it."""

    @property
    def running(self) -> Sequence[RequestView]:
        """Admitted requests in order of admission."""
        ...

    @property
    def decoding(self) -> DecodingView:
        """Those of ``running`` that decode, for policies that treat them alike."""
        ...

    @property
    def prefilling(self) -> Collection[RequestView]:
        """The rest of ``running``, in order of admission."""
        ...

    @property
    def loading(self) -> int:
        """How many admitted requests wait for their loads; they will be running."""
        ...

    @property
    def waiting(self) -> Collection[RequestView]:
        """The queue: suspended requests first, then by arrival."""
        ...

    @property
    def device_pages(self) -> int:
        """Capacity of the device tier."""
        ...

    @property
    def available_pages(self) -> int:
        """Device pages that are free or could be freed by eviction."""
        ...

    def pages_for(self, request: RequestView, tokens: int) -> int:
        """New device pages that running ``request`` needs to compute its next ``tokens`` missing tokens."""
        ...

    def freed_by(self, request: RequestView) -> int:
        """Device pages that suspending the running ``request`` makes available."""
        ...

    def offer(self, request: RequestView) -> Offer:
        """What admitting the waiting ``request`` would take now."""
        ...


@dataclass(slots=True)
class Share:
    """``tokens`` of this iteration for ``request``; ``offer`` is set when it is admitted by this plan.

    A deferred offer is accepted with 0 tokens: its loads start now, and the request is running once they are there.
    """

    request: RequestView
    tokens: int
    offer: Offer | None = None


@dataclass(slots=True)
class Plan:
    """One iteration: who runs, with how many tokens, who yields (in this order, before anyone runs).

    ``decodes``: every request of ``view.decoding`` takes one token; ``shares`` are those of others then. Without it
    requests decode that have a share.

    ``stable``: the policy would decide the same at the following steps as long as no request arrives, finishes or is
    suspended, no transfer completes, and pages suffice; the engine may then leap to the earliest such event.
    ``repeats``: that holds for shares of prompts too, as long as the prompts go on: the same tokens once more.
    """

    shares: list[Share] = field(default_factory=list)
    suspended: list[RequestView] = field(default_factory=list)
    stable: bool = False
    decodes: bool = False
    repeats: bool = False


class Scheduling(Policy, ABC):
    """Which requests run in the next iteration, with how many tokens, and who yields."""

    family: ClassVar[str] = "scheduling"

    @property
    def chunk(self) -> int | None:
        """The most tokens of one prompt in an iteration; None: prompts are never divided."""
        return None

    @abstractmethod
    def plan(self, view: SchedulerView) -> Plan:
        """Decide the next iteration. An empty plan means that nothing can run now."""


def serve_running(
    view: SchedulerView, plan: Plan, running: Iterable[RequestView], budget: int | None = None
) -> tuple[int | None, int]:
    """Give each request of ``running`` in turn what it misses, within ``budget`` tokens (None: no limit).

    Where pages do not suffice, requests are suspended from the end of ``running``. Returns what is left of the budget
    and the device pages that are still available.
    """
    room, queue = view.available_pages, list(running)
    served = 0
    while served < len(queue) and budget != 0:
        request = queue[served]
        tokens = request.missing_tokens if budget is None else min(request.missing_tokens, budget)
        pages = view.pages_for(request, tokens)
        while pages > room:
            victim = queue.pop()
            plan.suspended.append(victim)
            room += view.freed_by(victim)
            if victim is request:
                return budget, room
        plan.shares.append(Share(request, tokens))
        room -= pages
        budget = budget - tokens if budget is not None else None
        served += 1
    return budget, room


def serve_all(
    view: SchedulerView, plan: Plan, budget: int | None = None, *, by_arrival: bool = False
) -> tuple[int | None, int]:
    """:func:`serve_running` for all running requests, in order of admission or ``by_arrival``.

    O(1) in those that decode, as long as tokens suffice for all of them; who yields is looked for from the end.
    """
    decoding, left = view.decoding, budget
    room = view.available_pages - decoding.pages
    if budget is not None:
        left = budget - len(decoding) if decoding.first else -1
        if left < 0 or (room < 0 and by_arrival):
            return serve_running(view, plan, _in_order(view.running, by_arrival), budget)
    shares, rest, spare = _prompts(view, view.prefilling, left, room)
    if spare < 0:
        return _serve_as_many_as_fit(view, plan, left, room, by_arrival)
    plan.decodes = len(decoding) > 0
    plan.shares += shares
    return rest, spare


def _in_order(requests: Iterable[RequestView], by_arrival: bool) -> list[RequestView]:
    return sorted(requests, key=lambda request: request.order) if by_arrival else list(requests)


def _prompts(
    view: SchedulerView, prefilling: Iterable[RequestView], left: int | None, room: int
) -> tuple[list[Share], int | None, int]:
    """Shares of ``prefilling`` within ``left`` tokens; what is left of these and of ``room`` pages: less than 0 if they
    do not suffice."""
    shares: list[Share] = []
    for request in prefilling:
        if room < 0 or (left is not None and left <= 0):
            break
        tokens = request.missing_tokens if left is None else min(request.missing_tokens, left)
        room -= view.pages_for(request, tokens)
        left = left - tokens if left is not None else None
        shares.append(Share(request, tokens))
    return shares, left, room


def _serve_as_many_as_fit(
    view: SchedulerView, plan: Plan, left: int | None, room: int, by_arrival: bool
) -> tuple[int | None, int]:
    """Suspend from the end of the running requests until pages suffice for the others: all who decode, who go first,
    and ``left`` tokens of prompts, for which ``room`` pages are left."""
    running, prefilling = _in_order(view.running, by_arrival), _in_order(view.prefilling, by_arrival)
    decodes = len(view.decoding)
    shares, rest, spare = list[Share](), left, -1
    while spare < 0:
        victim = running.pop()
        plan.suspended.append(victim)
        room += view.freed_by(victim)
        if prefilling and prefilling[-1] is victim:
            prefilling.pop()
        else:
            decodes -= 1
            room += view.pages_for(victim, 1)
            left = left + 1 if left is not None else None
        shares, rest, spare = _prompts(view, prefilling, left, room)
    plan.decodes = decodes > 0
    plan.shares += shares
    return rest, spare


def admit_whole_prompts(
    view: SchedulerView, plan: Plan, room: int, *, budget: int, max_running: int, reserve: int
) -> None:
    """Admit waiting requests in order with all they miss, until one does not fit into ``room`` device pages.

    Up to ``budget`` tokens join the iteration, the first request whatever its length; ``reserve`` pages stay available
    while anything else runs. A request whose pages another one is computing is passed over.
    """
    running = len(view.running)
    slots, admitted = max_running - running - view.loading, False
    for request in view.waiting:
        if not slots:
            return
        offer = view.offer(request)
        if offer.blocked:
            continue
        tokens = 0 if offer.deferred else offer.compute_tokens
        pages = offer.pages + offer.pinned_pages
        kept = reserve if running or plan.shares else 0
        if pages > room - kept or (admitted and tokens > budget):
            return
        plan.shares.append(Share(request, tokens, offer))
        room -= pages
        budget -= tokens
        slots -= 1
        admitted = True
