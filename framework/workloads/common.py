"""What the workloads share: common knobs, their setting in a run, and the timing of conversations."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..schema import ConfigError
from .conversation import Conversation, Turn, Workload
from .tokenizer import Tokenizer
from .tokens import BlockLog, IdLog, TokenLog

STARTS, THINKING, LENGTHS, PROMPTS = range(1, 5)  # the random streams of a seed


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run gives a workload: see :func:`make_workload`."""

    seed: int
    vocab_size: int
    tokenizer: Tokenizer
    symbolic: bool

    def encode(self, text: str) -> NDArray[np.int32]:
        """Token ids of ``text``.

        Raises
        ------
        ConfigError
            If the tokenizer gives an id that the model does not have.
        """
        ids = np.array(self.tokenizer.encode(text), np.int32)
        if not self.symbolic and len(ids) and int(ids.max()) >= self.vocab_size:
            raise ConfigError(f"the tokenizer gives the id {ids.max()}, but the model has {self.vocab_size} ids")
        return ids

    def random(self, *stream: int) -> np.random.Generator:
        """The generator of one random stream of the run's seed."""
        return np.random.default_rng([self.seed, *stream])


def require_range(name: str, value: float | None, minimum: float, above: bool = False) -> None:
    """Refuse a knob below ``minimum`` (or not ``above`` it), infinite or not a number; None passes.

    Raises
    ------
    ValueError
        Naming the knob, its value and the allowed range.
    """
    if value is None or (math.isfinite(value) and (value > minimum if above else value >= minimum)):
        return
    raise ValueError(f"{name} is {value}; it must be {'>' if above else '>='} {minimum:g}")


@dataclass(frozen=True)
class Knobs(ABC):
    """The base of every workload's knobs.

    limit: how many conversations; null: all. max_context: a conversation ends before the turn whose input and output
    together would exceed so many tokens. warmup: so many first requests are excluded from the metrics.
    """

    limit: int | None = None
    max_context: int | None = None
    warmup: int = 0

    def __post_init__(self) -> None:
        require_range("limit", self.limit, 1)
        require_range("max_context", self.max_context, 2)
        require_range("warmup", self.warmup, 0)

    @abstractmethod
    def open(self, setting: Setting) -> Workload:
        """The workload. Reads its files; ConfigError if they are not as they should be."""


@dataclass(frozen=True)
class TimedKnobs(Knobs):
    """Knobs of workloads that have arrivals.

    rate: new conversations per second (Poisson); null: the data's own times or, if it has none, all start at 0.
    think_time_s: mean of an exponential; null: the data's own. time_scale: multiplies every time of the workload.
    """

    rate: float | None = None
    think_time_s: float | None = None
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("rate", self.rate, 0, above=True)
        require_range("think_time_s", self.think_time_s, 0)
        require_range("time_scale", self.time_scale, 0, above=True)

    def starts(self, setting: Setting) -> Iterator[float]:
        """Poisson arrivals at ``rate``, without end; zeros if it is null."""
        generator, now_s = setting.random(STARTS), 0.0
        while True:
            for gap in generator.exponential(size=1024).tolist():
                now_s += gap / self.rate if self.rate else 0.0
                yield now_s * self.time_scale


@dataclass(frozen=True)
class FileKnobs(TimedKnobs):
    """Knobs of workloads that come from a file: ``path``."""

    path: str | None = None

    def file(self) -> Path:
        """``path``, or ConfigError if it is not set or no file is there."""
        if self.path is None:
            raise ConfigError("workload.path is null; it must name the data file")
        path = Path(self.path).expanduser()
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "does not exist"
            raise ConfigError(f"workload.path: {path} {found}; it must name the data file")
        return path

    def arrange(self, found: Iterable[Conversation], setting: Setting) -> list[Conversation]:
        """Cut, limit, time and number the conversations ``found``, which come in order of their start.

        Raises
        ------
        ConfigError
            If none is left.
        """
        cut = (replace(c, turns=self._within(c.turns)) for c in found)
        kept = islice((c for c in cut if c.turns), self.limit)
        starts = self.starts(setting)
        timed = [self._timed(i, c, next(starts), setting) for i, c in enumerate(kept)]
        if not timed:
            raise ConfigError(f"{self.source()}: no conversation is left (max_context is {self.max_context})")
        return timed

    def source(self) -> str:
        """Where the conversations come from, for messages."""
        return str(self.path)

    def _within(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        if self.max_context is None:
            return turns
        context = 0
        for index, turn in enumerate(turns):
            context = turn.output_tokens + (context + turn.prompt_tokens if turn.log is None else len(turn.log))
            if context > self.max_context:
                return turns[:index]
        return turns

    def _timed(self, index: int, found: Conversation, start_s: float, setting: Setting) -> Conversation:
        """``found`` as number ``index``, at its own time or, with a rate, at ``start_s`` (scaled already)."""
        if self.rate is None:
            start_s = found.start_s * self.time_scale
        think_s = [turn.think_s for turn in found.turns]
        if self.think_time_s is not None:
            draws = setting.random(THINKING, index).exponential(size=len(found.turns))
            think_s = [float(draw) * self.think_time_s for draw in draws]
        turns: list[Turn] = []
        for turn, pause_s in zip(found.turns, think_s, strict=True):
            arrival_s = turn.arrival_s if self.think_time_s is None else None
            if arrival_s is not None:
                arrival_s = start_s + (arrival_s - found.start_s) * self.time_scale
            turns.append(replace(turn, arrival_s=arrival_s, think_s=pause_s * self.time_scale if turns else 0.0))
        return Conversation(index, start_s, tuple(turns), found.label)


class ListedWorkload:
    """A workload whose conversations are all in memory."""

    barrier = False

    def __init__(self, name: str, conversations: list[Conversation], setting: Setting, warmup: int) -> None:
        self.name, self.warmup, self._listed, self._setting = name, warmup, conversations, setting
        self.symbolic = any(turn.log is not None for turn in conversations[0].turns)

    def __len__(self) -> int:
        return len(self._listed)

    def conversations(self) -> Iterable[Conversation]:
        """All conversations, each time with logs of their own (the engine extends them)."""
        return map(_with_new_logs, self._listed) if self.symbolic else iter(self._listed)

    def new_log(self, conversation: Conversation) -> TokenLog:
        """An empty log. In a simulation, replies that the workload does not know derive from the conversation."""
        return IdLog(stream=conversation.id if self._setting.symbolic else None)


def _with_new_logs(conversation: Conversation) -> Conversation:
    return replace(conversation, turns=tuple(replace(t, log=_new(t.log)) for t in conversation.turns))


def _new(log: TokenLog | None) -> TokenLog | None:
    if isinstance(log, BlockLog):
        return BlockLog(log.block_ids, log.block_tokens, log.input_tokens, log.request)
    return log
