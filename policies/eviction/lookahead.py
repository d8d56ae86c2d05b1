"""CachedAttention's scheduler-aware eviction: whole sessions, those that wait in the queue last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...framework.policy import Eviction, Future, RunView, Tier, TierView, Victim, register


@dataclass(slots=True)
class Session:
    """What a tier holds of one conversation."""

    runs: dict[RunView, None] = field(default_factory=dict)
    used_s: float = 0.0


@register("eviction", "lookahead")
@dataclass
class LookAhead(Eviction):
    """Gao et al., "Cost-efficient LLM serving ... with CachedAttention", USENIX ATC 2024, section 3.3.2 and Figure 9.

    A session leaves whole. Sessions without a request among the first L = (C_mem + C_disk) / S_kv waiting ones leave
    first, the least recently used before others; then those with one, from the tail of that window to its head. So a
    session inside the window is dropped from the last tier only if nothing else is left. S_kv is the mean size of the
    sessions that the tier holds, C_mem + C_disk the tier's own pages and those of all tiers below. Sessions that were
    idle for more than ``ttl_s`` seconds (the paper's capacity experiment: one hour; null: never) leave before all
    others and have no place in the window. Where the disk must drop something, its copies of what was fetched to the
    host leave before any session is lost, those needed soonest first: the two tiers hold C_mem + C_disk together.

    Deviations: a run that several conversations share belongs to the one that used it last; what is pinned stays, so
    that a session may leave in part; the paper's exemption from dropping is strict, here it yields before a request
    fails; the disk's own window counts the disk only, and idle time begins again when a session moves to another tier;
    where the paper says nothing (order among sessions without a request) it is LRU.
    """

    ttl_s: float | None = None

    def __post_init__(self) -> None:
        if self.ttl_s is not None and not self.ttl_s > 0:
            raise ValueError(f"ttl_s is {self.ttl_s}; it must be more than 0, or null")

    def bind(self, view: TierView, future: Future | None = None) -> None:
        super().bind(view, future)
        self._sessions: OrderedDict[int, Session] = OrderedDict()  # least recently used first
        self._home: dict[RunView, int] = {}
        self._pages = 0

    def inserted(self, run: RunView, pages: int) -> None:
        self._pages += pages
        if run not in self._home:
            self._use(run)

    def accessed(self, run: RunView) -> None:
        self._use(run)

    def released(self, run: RunView) -> None:
        self._use(run)

    def split(self, upper: RunView, lower: RunView) -> None:
        if lower in self._home:
            self._home[upper] = self._home[lower]
            self._sessions[self._home[lower]].runs[upper] = None

    def removed(self, run: RunView, evicted: bool) -> None:
        if run in self._home:
            self._pages -= run.pages
            self._leave_home(run)

    def _use(self, run: RunView) -> None:
        if self._home.get(run) != run.conversation:
            self._leave_home(run)
            self._home[run] = run.conversation
        session = self._sessions.setdefault(run.conversation, Session())
        session.runs[run] = None
        session.used_s = self.view.now_s
        self._sessions.move_to_end(run.conversation)

    def _leave_home(self, run: RunView) -> None:
        home = self._home.pop(run, None)
        if home is not None:
            del self._sessions[home].runs[run]
            if not self._sessions[home].runs:
                del self._sessions[home]

    @property
    def window(self) -> int:
        """How many waiting requests are looked at."""
        reach = self.view.capacity + self.view.capacity_below
        return reach * len(self._sessions) // self._pages if self._pages else 0

    def order(self) -> Iterator[int]:
        """Conversations in the order in which they leave. Changes of the store between two are taken into account."""
        window = self.window
        ahead: list[tuple[int, int]] = []
        position_of = self.view.queue.position
        for conversation, session in list(self._sessions.items()):
            position = position_of(conversation)
            if position is None or position >= window or self._expired(session):
                yield conversation
            else:
                ahead.append((-position, conversation))
        for _, conversation in sorted(ahead):
            yield conversation

    def _expired(self, session: Session) -> bool:
        return self.ttl_s is not None and self.view.now_s - session.used_s > self.ttl_s

    def _fetched(self) -> Iterator[RunView]:
        """On disk: what the host holds too for waiting sessions, the next one first, each from its end."""
        if self.view.tier is not Tier.DISK:
            return
        for conversation in filter(self._sessions.__contains__, self.view.queue.conversations()):
            session = self._sessions.get(conversation)
            runs = [run for run in session.runs if run.held_by(Tier.HOST)] if session else []
            if runs:
                yield from sorted(runs, key=lambda run: -run.start)

    def victims(self, need: int) -> Iterator[Victim]:
        for run in self._fetched():
            if need <= 0:
                return
            if run in self._home and self.view.evictable(run):
                need -= run.pages
                yield Victim(run, run.pages)
        found = True
        while found:  # again, where a session kept what another one's pages followed
            found = False
            for conversation in self.order():
                if need <= 0:
                    return
                session = self._sessions.get(conversation)
                runs = sorted(session.runs, key=lambda run: run.start) if session else []
                while runs:
                    run = runs.pop()
                    if run in self._home and self.view.evictable(run):
                        found = True
                        need -= run.pages
                        yield Victim(run, run.pages, more=bool(runs))
