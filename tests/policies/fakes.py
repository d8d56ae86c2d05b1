"""What policies see, made by hand: runs, a tier, a queue, requests, costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from kvarena.framework.policy import Eviction, Offer, RequestView, RestorePlan, Tier


@dataclass
class Linear:
    """A token costs ``token_s`` and ``slope_s`` for each before it; a loaded one ``load_token_s[tier]``."""

    token_s: float = 1.0
    slope_s: float = 0.0
    host_s: float = 0.1
    disk_s: float = 0.5

    def recompute_s(self, start: int, stop: int) -> float:
        return self.token_s * (stop - start) + self.slope_s * (stop * (stop - 1) - start * (start - 1)) / 2

    def load_s(self, tokens: int, tier: Tier) -> float:
        return tokens * {Tier.DEVICE: 0.0, Tier.HOST: self.host_s, Tier.DISK: self.disk_s}[tier]


@dataclass(eq=False)
class FakeRun:
    """Pages ``start`` .. ``start + pages`` of ``conversation``; ``tiers`` hold it."""

    conversation: int
    pages: int = 1
    start: int = 0
    last_use: int = 0
    inserted: int = 0
    uses: int = 1
    tiers: tuple[Tier, ...] = ()
    parent: FakeRun | None = None
    shared: bool = False

    @property
    def keys(self) -> NDArray[np.int64]:
        return np.arange(self.pages, dtype=np.int64) + 1000 * self.conversation + self.start

    def held_by(self, tier: Tier) -> bool:
        return tier in self.tiers


@dataclass
class FakeRequest:
    conversation: int = 0
    known_tokens: int = 1
    order: int = 0
    id: int = 0
    turn: int = 0
    arrival_s: float = 0.0
    input_tokens: int = 1
    generated_tokens: int = 0
    missing_tokens: int = 1


@dataclass
class FakeQueue:
    """Waiting requests in order."""

    waiting: list[FakeRequest] = field(default_factory=list)

    def position(self, conversation: int) -> int | None:
        found = [index for index, request in enumerate(self.waiting) if request.conversation == conversation]
        return found[0] if found else None

    def conversations(self) -> Iterator[int]:
        return iter(dict.fromkeys(request.conversation for request in self.waiting))

    def head(self, limit: int) -> Iterator[FakeRequest]:
        return islice(self.waiting, limit)


@dataclass
class FakeTier:
    """A tier whose runs are all evictable but ``pinned``."""

    tier: Tier = Tier.HOST
    capacity: int = 100
    free_pages: int = 0
    spare_pages: int = 0
    capacity_below: int = 0
    queue: FakeQueue = field(default_factory=FakeQueue)
    tick: int = 0
    now_s: float = 0.0
    page_size: int = 1
    leaves_only: bool = True
    costs: Linear = field(default_factory=Linear)
    pinned: set[FakeRun] = field(default_factory=set)

    def evictable(self, run: FakeRun) -> bool:
        return run not in self.pinned

    def store(self, policy: Eviction, *runs: FakeRun) -> None:
        """Tell ``policy`` that ``runs`` came, one tick after another."""
        for run in runs:
            self.tick += 1
            run.last_use = run.inserted = self.tick
            policy.inserted(run, run.pages)
            policy.released(run)

    def use(self, policy: Eviction, run: FakeRun) -> None:
        """Tell ``policy`` that a request used ``run``."""
        self.tick += 1
        run.uses += 1
        policy.accessed(run)
        run.last_use = self.tick
        policy.released(run)

    def evict(self, policy: Eviction, need: int) -> list[int]:
        """Conversations of the victims for ``need`` pages, which leave."""
        gone = []
        for victim in policy.victims(need):
            assert victim.pages == victim.run.pages, "these fakes do not split"
            gone.append(victim.run.conversation)
            policy.removed(victim.run, True)
        return gone


def bound(policy: Eviction, **given: object) -> FakeTier:
    """A tier that ``policy`` is bound to."""
    view = FakeTier(**given)  # type: ignore[arg-type]
    policy.bind(view)
    return view


class FakeDecoding:
    """A ``DecodingView`` of nobody."""

    pages = 0
    first = True

    def __len__(self) -> int:
        return 0


@dataclass
class FakeEngine:
    """A ``SchedulerView`` of waiting requests that would compute ``missing[i]`` tokens, and of none that run."""

    waiting: list[FakeRequest]
    missing: list[int]
    blocked: set[int] = field(default_factory=set)
    available_pages: int = 1000
    device_pages: int = 1000
    running: tuple[RequestView, ...] = ()
    loading: int = 0
    prefilling: tuple[RequestView, ...] = ()
    decoding: FakeDecoding = field(default_factory=lambda: FakeDecoding())
    offered: list[int] = field(default_factory=list)

    def pages_for(self, request: RequestView, tokens: int) -> int:
        raise AssertionError("nothing runs")

    def freed_by(self, request: RequestView) -> int:
        raise AssertionError("nothing runs")

    def offer(self, request: RequestView) -> Offer:
        self.offered.append(request.id)
        start = request.known_tokens - self.missing[request.id]
        missing = ((start, request.known_tokens),)
        return Offer(request, RestorePlan(()), missing, 0, 1, request.id in self.blocked)


def waiting(known_tokens: Iterable[int]) -> list[FakeRequest]:
    """A queue of requests of so many tokens, each of its own conversation."""
    return [FakeRequest(i, tokens, i, i) for i, tokens in enumerate(known_tokens)]
