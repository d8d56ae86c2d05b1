"""Cases: what a quality run serves, as prompts with the replies that are right, whatever they were made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..workloads.conversation import Conversation, Turn
from ..workloads.tokens import IdLog, TokenLog
from .episodes import Episode, Protocol
from .scoring import Answers

Ids = NDArray[np.int32]
TURN_TOKENS, PROMPT_TOKENS = 128, 16  # of running text: what comes at once, and how much of it is given


@dataclass(frozen=True, slots=True)
class CaseTurn:
    """One turn.

    Attributes
    ----------
    prompt: int32 ids, at least one.
    reply: the right reply, which generation is made to follow; None: ``tokens`` of the model's own choice.
    tokens: of the reply, at least one.
    measured: False for a turn that only puts something into the context.
    answers: what is right, where ``reply`` is None.
    before_cut: so many first tokens of the reply are predicted while the whole prompt is cached, whatever the policy;
        they say nothing of it.
    """

    prompt: Ids
    reply: Ids | None
    tokens: int
    measured: bool = True
    answers: Answers | None = None
    before_cut: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation to measure. ``length``: as it was asked for, 0 for one of a file; ``number``: among those of its
    task and length."""

    task: str
    length: int
    number: int
    turns: tuple[CaseTurn, ...]

    @property
    def tokens(self) -> int:
        """Of all turns, replies included."""
        return sum(len(turn.prompt) + turn.tokens for turn in self.turns)

    @property
    def measured_tokens(self) -> int:
        """Of all measured replies."""
        return sum(turn.tokens for turn in self.turns if turn.measured)

    @property
    def name(self) -> str:
        """For messages."""
        length = f", length {self.length}" if self.length else ""  # those of files have none
        return f"task {self.task}{length}, episode {self.number}"


def from_episode(episode: Episode, length: int, number: int, protocol: Protocol) -> Case:
    """The case of a drawn episode."""
    turns = [
        CaseTurn(_ids(turn.prompt), _ids(turn.answer), len(turn.answer), turn.asked, before_cut=int(i == 0))
        for i, turn in enumerate(episode.turns(protocol))
    ]
    return Case(episode.task, length, number, tuple(turns))


def from_text(ids: Ids, number: int, starts: Sequence[int] = ()) -> Case:
    """The case ``perplexity`` of running text: turns of :data:`TURN_TOKENS`, of which all but the first
    :data:`PROMPT_TOKENS` are predicted one by one.

    ``starts``: ids that are put before it (BOS); the last of ``ids`` make room.

    Raises
    ------
    ValueError
        If the text is too short to predict anything.
    """
    if len(ids) < 2:
        raise ValueError(f"a text of {len(ids)} tokens has none to predict, expected at least 2")
    ids = np.concatenate([np.array(starts, np.int32), ids[: len(ids) - len(starts)]])
    parts = [ids[start : start + TURN_TOKENS] for start in range(0, len(ids), TURN_TOKENS)]
    if len(parts[-1]) < 2:
        parts[-2:] = [np.concatenate(parts[-2:])]
    given = [min(PROMPT_TOKENS, len(part) // 2) for part in parts]
    turns = [CaseTurn(part[:n], part[n:], len(part) - n) for part, n in zip(parts, given, strict=True)]
    return Case("perplexity", len(ids), number, tuple(turns))


def _ids(tokens: Sequence[int]) -> Ids:
    return np.array(tokens, np.int32)


class CaseWorkload:
    """Cases as a workload: all of them begin at once, and turns follow one another without a pause.

    ``replies``: what generation is made to follow instead of each case's own, for each turn of each case; None: the
    model is free.
    """

    name = "quality"
    barrier = False
    symbolic = False
    warmup = 0

    def __init__(self, cases: Sequence[Case], replies: Sequence[Sequence[Ids | None]] | None = None) -> None:
        given = [[turn.reply for turn in case.turns] for case in cases] if replies is None else replies
        self._conversations = [
            Conversation(number, 0.0, tuple(_turn(turn, reply) for turn, reply in zip(case.turns, own, strict=True)))
            for number, (case, own) in enumerate(zip(cases, given, strict=True))
        ]

    def __len__(self) -> int:
        return len(self._conversations)

    def conversations(self) -> Iterable[Conversation]:
        """All conversations; their ids are the places of their cases."""
        return iter(self._conversations)

    def new_log(self, conversation: Conversation) -> TokenLog:
        """An empty log."""
        return IdLog()


def _turn(turn: CaseTurn, reply: Ids | None) -> Turn:
    tokens = turn.tokens if reply is None else len(reply)
    return Turn(len(turn.prompt), tokens, prompt_ids=turn.prompt, reply_ids=reply)
