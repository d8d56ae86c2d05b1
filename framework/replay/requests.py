"""What a workload asks for, in the order of arrival, where nothing takes time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from ..workloads.conversation import Conversation, Turn, Workload
from ..workloads.tokens import BlockLog, TokenLog


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its context ``log``, ``input_tokens`` of it asked for, ``stored_tokens`` of it there at its end.

    ``new_tokens`` are its prompt's, ``reply_tokens`` its reply's.
    """

    conversation: int
    arrival_s: float
    log: TokenLog
    input_tokens: int
    stored_tokens: int
    new_tokens: int
    reply_tokens: int


@dataclass(slots=True)
class _Dialogue:
    conversation: Conversation
    log: TokenLog
    turn: int = 0
    arrival_s: float = 0.0


def in_order(workload: Workload) -> Iterator[Asked]:
    """The requests of ``workload`` by arrival.

    Where the workload has arrivals, they are its own. Else a turn arrives ``think_s`` after the one before: serving
    takes no time. Requests of one moment: a trace's in its order, others by turn, then by conversation.
    """
    heap: list[tuple[float, int, int, _Dialogue]] = []
    conversations = iter(workload.conversations())
    upcoming = next(conversations, None)
    while heap or upcoming is not None:
        while upcoming is not None and (not heap or upcoming.start_s <= heap[0][0]):
            heapq.heappush(heap, _entry(_Dialogue(upcoming, workload.new_log(upcoming), 0, upcoming.start_s)))
            upcoming = next(conversations, None)
        dialogue = heapq.heappop(heap)[-1]
        yield _ask(dialogue)
        dialogue.turn += 1
        if dialogue.turn < len(dialogue.conversation.turns):
            turn = dialogue.conversation.turns[dialogue.turn]
            now_s = dialogue.arrival_s
            dialogue.arrival_s = now_s + turn.think_s if turn.arrival_s is None else max(now_s, turn.arrival_s)
            heapq.heappush(heap, _entry(dialogue))


def _entry(dialogue: _Dialogue) -> tuple[float, int, int, _Dialogue]:
    log = dialogue.conversation.turns[dialogue.turn].log
    order = log.request if isinstance(log, BlockLog) else dialogue.turn
    return dialogue.arrival_s, order, dialogue.conversation.id, dialogue


def _ask(dialogue: _Dialogue) -> Asked:
    """The next turn of ``dialogue``. A reply without identity is stored nowhere: nothing could find it."""
    turn: Turn = dialogue.conversation.turns[dialogue.turn]
    if turn.log is None:
        log = dialogue.log
        log.extend(turn.prompt_tokens, turn.prompt_ids)
    else:
        log = turn.log
    tokens = len(log)
    stored = tokens
    if not isinstance(log, BlockLog):
        log.extend(turn.output_tokens, turn.reply_ids)
        stored += turn.output_tokens - 1  # the last token of a reply is never computed
    number = dialogue.conversation.id
    return Asked(number, dialogue.arrival_s, log, tokens, stored, turn.prompt_tokens, turn.output_tokens)
