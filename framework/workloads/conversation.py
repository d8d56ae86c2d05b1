"""What a workload is: conversations of turns, with the tokens' identity and nothing of how they are served."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .tokens import TokenLog


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange.

    Attributes
    ----------
    prompt_tokens: new tokens of the user, >= 1.
    output_tokens: how many tokens the model generates, >= 1 (a forced length).
    think_s: seconds from the completion of the previous turn to the arrival of this one (closed loop; ignored where
        ``arrival_s`` is set and for the first turn).
    arrival_s: the absolute arrival (open loop), or None.
    prompt_ids, reply_ids: int32 token ids, or None where only identity and sizes are known. ``reply_ids`` (length
        ``output_tokens``) are the workload's own reply: generation is forced to follow them.
    log: the whole context of this turn where it does not simply extend the previous one (a trace that gives each
        request's input by block ids), input tokens only; None: previous context + reply + prompt.
    history_tokens: with ``log``, how many of its tokens precede the new prompt.
    """

    prompt_tokens: int
    output_tokens: int
    think_s: float = 0.0
    arrival_s: float | None = None
    prompt_ids: NDArray[np.int32] | None = None
    reply_ids: NDArray[np.int32] | None = None
    log: TokenLog | None = None
    history_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Conversation:
    """``start_s`` is the arrival of the first turn, ``id`` a dense index, ``label`` the workload's own name of it."""

    id: int
    start_s: float
    turns: tuple[Turn, ...]
    label: str = ""


class Workload(Protocol):
    """A set of conversations, iterated in order of ``start_s``; iterating twice yields the same.

    ``name``: as the run's tables show it. ``barrier``: all conversations submit turn k + 1 together, when every turn k
    is done. ``symbolic``: token ids are unknown (a model cannot run it). ``warmup``: so many first requests are
    excluded from the metrics.
    """

    name: str
    barrier: bool
    symbolic: bool
    warmup: int

    def __len__(self) -> int: ...

    def conversations(self) -> Iterable[Conversation]: ...

    def new_log(self, conversation: Conversation) -> TokenLog:
        """The context before the first turn: empty, or the shared system prompt."""
        ...
