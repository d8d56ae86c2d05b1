"""Arrivals, clock and instances: a workload served from its first turn to its last."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .engine import IDLE, Engine
from .execution.contract import Clock
from .metrics.records import Recorder, RequestRecord
from .policy import Routing, RunView
from .request import Missing, Request
from .workloads.conversation import Conversation, Turn, Workload
from .workloads.narrowed import whole_log
from .workloads.reuse import PrefixIndex
from .workloads.tokens import TokenLog


@dataclass(slots=True, eq=False)
class Dialogue:
    """A conversation in progress: ``next_turn`` has not arrived yet, ``open_turns`` are being served.

    ``log`` is what is cached of it where its oldest tokens, or any, were let go of, ``whole`` all of it.
    """

    conversation: Conversation
    log: TokenLog
    whole: TokenLog
    next_turn: int = 0
    open_turns: int = 0

    def turn(self) -> Turn | None:
        """The next turn, or None after the last."""
        turns = self.conversation.turns
        return turns[self.next_turn] if self.next_turn < len(turns) else None


@dataclass(slots=True)
class Arrivals:
    """When each conversation's next turn arrives, as far as that is known; the ``Future`` of oracle policies.

    ``open_turns`` counts the turns of a conversation that have arrived and are not done.
    """

    next_s: dict[int, float] = field(default_factory=dict)
    open_turns: Counter[int] = field(default_factory=Counter)

    def next_use(self, run: RunView) -> float:
        """See ``Future.next_use``; a run that is shared, or whose conversation is waiting, is wanted at once."""
        if run.shared or self.open_turns[run.conversation]:
            return 0.0
        return self.next_s.get(run.conversation, IDLE)


@dataclass(slots=True)
class Progress:
    """How far a session is. ``requests`` counts finished and failed ones, ``failed`` the latter."""

    now_s: float = 0.0
    requests: int = 0
    failed: int = 0
    conversations: int = 0
    total_conversations: int = 0


class Session:
    """Runs ``workload`` on ``engines``.

    Conversations start at their time; a turn that continues its conversation arrives ``think_s`` after the previous
    reply (or at its own ``arrival_s``, if later), a turn with its own context at its ``arrival_s`` whatever happened
    before. ``on_arrival`` is given the record of every request that arrives, which is filled as it is served.
    """

    def __init__(
        self,
        workload: Workload,
        engines: Sequence[Engine],
        routing: Routing,
        clock: Clock,
        recorder: Recorder,
        *,
        arrivals: Arrivals,
        warmup: int = 0,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_arrival: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        self.workload = workload
        self.engines = engines
        self.routing = routing
        self.clock = clock
        self.recorder = recorder
        self.arrivals = arrivals
        self.warmup = warmup
        self.on_progress = on_progress
        self.on_arrival = on_arrival
        self.progress = Progress(total_conversations=len(workload))
        self._conversations = iter(workload.conversations())
        self._upcoming = next(self._conversations, None)
        self._heap: list[tuple[float, int, Dialogue]] = []
        self._pushed = 0
        self._arrived = 0
        self._active: dict[int, Dialogue] = {}
        self._at_barrier: list[Dialogue] = []
        self._reuse = PrefixIndex()
        self._wake = [IDLE] * len(engines)
        for engine in engines:
            engine.on_done, engine.on_failed = self._done, self._given_up

    def run(self) -> Progress:
        """Serve everything; returns when no request is left."""
        while (now := min(self._next_arrival(), *self._wake)) < IDLE:
            self.clock.wait_until(now)
            self._admit_arrivals(self.clock.now())
            for index, engine in enumerate(self.engines):
                if self._wake[index] <= self.clock.now():
                    self._wake[index] = engine.step(max(self.clock.now(), self._wake[index]), self._next_arrival)
            self.progress.now_s = self.clock.now()
            self.on_progress(self.progress)
        return self.progress

    # --- arrivals -----------------------------------------------------------------------------------------------

    def _next_arrival(self) -> float:
        start = self._upcoming.start_s if self._upcoming is not None else IDLE
        return min(start, self._heap[0][0]) if self._heap else start

    def _admit_arrivals(self, now: float) -> None:
        while self._next_arrival() <= now:
            if self._upcoming is not None and (not self._heap or self._upcoming.start_s <= self._heap[0][0]):
                conversation = self._upcoming
                self._upcoming = next(self._conversations, None)
                whole = self.workload.new_log(conversation)
                log = self.engines[0].narrowed.own(whole, lasting=True)
                dialogue = Dialogue(conversation, log, whole)
                self._active[conversation.id] = dialogue
                self._arrive(dialogue, conversation.start_s)
            else:
                arrival_s, _, dialogue = heapq.heappop(self._heap)
                self._arrive(dialogue, arrival_s)

    def _arrive(self, dialogue: Dialogue, arrival_s: float) -> None:
        turn = dialogue.turn()
        assert turn is not None
        request = self._request(dialogue, turn, arrival_s)
        if self.on_arrival is not None:
            self.on_arrival(request.record)
        dialogue.next_turn += 1
        if (following := dialogue.turn()) is not None and _open_loop(following):
            self._schedule(dialogue, following.arrival_s)
        engine = self.routing.route(request, len(self.engines))
        refusal = self.engines[engine].refuses(request)
        if refusal is not None:
            self._fail(dialogue, request, refusal, arrival_s)
            return
        dialogue.open_turns += 1
        self.arrivals.open_turns[request.conversation] += 1
        self.engines[engine].submit(request)
        if not self.engines[engine].computing:  # one that computes looks at its queue when its iteration ends
            self._wake[engine] = min(self._wake[engine], self.clock.now())

    def _request(self, dialogue: Dialogue, turn: Turn, arrival_s: float) -> Request:
        conversation = dialogue.conversation.id
        whole, history = dialogue.whole, len(dialogue.whole)
        if turn.log is not None:
            whole, history = turn.log, turn.history_tokens
            log = self.engines[0].narrowed.own(whole, lasting=False)
        else:
            self._truncate(dialogue, turn)
            log = dialogue.log
            log.extend(turn.prompt_tokens, turn.prompt_ids)
        tokens = len(log)
        reusable = self._reuse.arrive(conversation, whole, len(whole), turn.reply_ids)
        record = RequestRecord(
            request=self._arrived,
            conversation=conversation,
            turn=dialogue.next_turn,
            arrival_s=arrival_s,
            prompt_tokens=turn.prompt_tokens,
            history_tokens=history,
            reusable_tokens=reusable,
            dropped=min(reusable, len(whole) - tokens),
            output_tokens=turn.output_tokens,
            warmup=self._arrived < self.warmup,
        )
        request = Request(
            id=self._arrived,
            conversation=conversation,
            turn=dialogue.next_turn,
            arrival_s=arrival_s,
            order=self._arrived,
            input_tokens=tokens,
            target_tokens=turn.output_tokens,
            log=log,
            record=record,
            forced=turn.reply_ids,
        )
        request.expect([Missing(0, tokens)])
        self._arrived += 1
        return request

    def _truncate(self, dialogue: Dialogue, turn: Turn) -> None:
        """Cut the oldest tokens off a context that would outgrow the window of the engine that served it."""
        history = len(dialogue.log)
        needed = history + turn.prompt_tokens + turn.output_tokens
        dialogue.log = self.engines[0].cut(dialogue.log, history, needed, dialogue.conversation.id)

    def _skipped(self, dialogue: Dialogue, turn: Turn, failed: Request) -> RequestRecord:
        """A turn that never arrives: nobody can reuse it, and it could reuse nothing."""
        number, self._arrived = self._arrived, self._arrived + 1
        return RequestRecord(
            request=number,
            conversation=failed.conversation,
            turn=dialogue.next_turn,
            arrival_s=failed.arrival_s,
            prompt_tokens=turn.prompt_tokens,
            history_tokens=0,
            reusable_tokens=0,
            output_tokens=turn.output_tokens,
            status="skipped: an earlier turn failed",
            warmup=number < self.warmup,
        )

    def _schedule(self, dialogue: Dialogue, arrival_s: float | None) -> None:
        assert arrival_s is not None
        self._pushed += 1
        self.arrivals.next_s[dialogue.conversation.id] = arrival_s
        heapq.heappush(self._heap, (arrival_s, self._pushed, dialogue))

    # --- completions --------------------------------------------------------------------------------------------

    def _done(self, request: Request, now: float) -> None:
        dialogue = self._active[request.conversation]
        whole = dialogue.whole if request.log is dialogue.log else whole_log(request.log)
        self._reuse.replied(request.conversation, whole, len(whole))
        self.progress.requests += 1
        dialogue.open_turns -= 1
        self.arrivals.open_turns[request.conversation] -= 1
        following = dialogue.turn()
        if following is None:
            self._end(dialogue, now)
        elif not (_open_loop(following) or dialogue.open_turns):
            self._follow(dialogue, following, now)

    def _follow(self, dialogue: Dialogue, turn: Turn, now: float) -> None:
        if self.workload.barrier:
            self._at_barrier.append(dialogue)
            self.arrivals.next_s[dialogue.conversation.id] = now
            self._open_barrier(now)
        elif turn.arrival_s is not None:
            self._schedule(dialogue, max(turn.arrival_s, now))
        else:
            self._schedule(dialogue, now + turn.think_s)

    def _open_barrier(self, now: float) -> None:
        if self._at_barrier and len(self._at_barrier) == len(self._active) and self._upcoming is None:
            for dialogue in sorted(self._at_barrier, key=lambda dialogue: dialogue.conversation.id):
                self._schedule(dialogue, now)
            self._at_barrier.clear()

    def _end(self, dialogue: Dialogue, now: float) -> None:
        if dialogue.open_turns:
            return
        del self._active[dialogue.conversation.id]
        self.arrivals.next_s.pop(dialogue.conversation.id, None)
        del self.arrivals.open_turns[dialogue.conversation.id]
        self._reuse.ended(dialogue.conversation.id, dialogue.whole)
        self.engines[0].narrowed.ended(dialogue.log)
        self.progress.conversations += 1
        self._open_barrier(now)

    def _given_up(self, request: Request, reason: str, now: float) -> None:
        dialogue = self._active[request.conversation]
        dialogue.open_turns -= 1
        self.arrivals.open_turns[request.conversation] -= 1
        self._fail(dialogue, request, reason, now)

    def _fail(self, dialogue: Dialogue, request: Request, reason: str, now: float) -> None:
        """The request cannot be served; turns that build on it cannot either."""
        request.record.status = f"failed: {reason}"
        self.recorder.request(request.record)
        self.progress.requests += 1
        self.progress.failed += 1
        following = dialogue.turn()
        while following is not None and not _open_loop(following):
            self.recorder.request(self._skipped(dialogue, following, request))
            self.progress.requests += 1
            self.progress.failed += 1
            dialogue.next_turn += 1
            following = dialogue.turn()
        if following is None:
            self._end(dialogue, now)


def _open_loop(turn: Turn) -> bool:
    """True for a turn that depends on nothing before it."""
    return turn.log is not None and turn.arrival_s is not None
