"""Time to live: what has outlived it leaves first, then the least recently used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ...framework.policy import Eviction, Future, RunQueue, RunView, TierView, Victim, register


@register("eviction", "ttl")
@dataclass
class TTL(Eviction):
    """Runs that have outlived ``ttl_s`` seconds leave first, longest expired first; then the least recently used.

    ``since``: a life begins when a run is stored in the tier (``stored``: what providers sell as cache lifetime, and
    Mooncake's lease) or at each use (``use``: CachedAttention's session TTL, section 4.3.6). Idle time grows in LRU's
    order, so that ``use`` names LRU's victims: it is the same policy, kept for the comparison.

    Deviations: nothing leaves a tier that has room because its time is up; seconds are the run's clock. A run that
    grows keeps the time of its first page.
    """

    ttl_s: float = 300.0
    since: Literal["stored", "use"] = "stored"

    def __post_init__(self) -> None:
        if not self.ttl_s > 0:
            raise ValueError(f"ttl_s is {self.ttl_s}; it must be more than 0")

    def bind(self, view: TierView, future: Future | None = None) -> None:
        super().bind(view, future)
        self._born_s: dict[RunView, float] = {}
        self._by_age, self._by_use = RunQueue(view), RunQueue(view)

    def inserted(self, run: RunView, pages: int) -> None:
        self._born_s.setdefault(run, self.view.now_s)

    def accessed(self, run: RunView) -> None:
        if self.since == "use":
            self._born_s[run] = self.view.now_s

    def released(self, run: RunView) -> None:
        if self.since == "use":
            self._born_s[run] = self.view.now_s
        self._by_age.push(run, self._born_s[run])
        self._by_use.push(run, run.last_use)

    def split(self, upper: RunView, lower: RunView) -> None:
        if lower in self._born_s:
            self._born_s[upper] = self._born_s[lower]
        if lower in self._by_use:
            self._by_age.split(upper, lower)
            self._by_use.split(upper, lower)

    def removed(self, run: RunView, evicted: bool) -> None:
        self._born_s.pop(run, None)
        for queue in (self._by_age, self._by_use):
            queue.remove(run)
            queue.wake(run.parent)

    def victims(self, need: int) -> Iterator[Victim]:
        while need > 0:
            oldest = self._by_age.first()
            expired = oldest is not None and self.view.now_s - self._born_s[oldest] > self.ttl_s
            run = oldest if expired else self._by_use.first()
            if run is None:
                return
            pages = min(run.pages, need)
            need -= pages
            yield Victim(run, pages)
