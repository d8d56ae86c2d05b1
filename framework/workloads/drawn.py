"""Workloads whose conversations are made from drawn sizes, one by one, as they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..schema import ConfigError
from .common import PROMPTS, Setting, TimedKnobs
from .conversation import Conversation, Turn
from .tokens import IdLog, StreamLog, TokenLog

Sizes = list[tuple[int, int, float]]  # per turn: prompt tokens, output tokens, think seconds

_PATIENCE = 1000  # so many conversations that cannot begin are taken for all


class DrawnKnobs(Protocol):
    """What drawn workloads' knobs have in common."""

    @property
    def limit(self) -> int | None: ...
    @property
    def max_context(self) -> int | None: ...
    @property
    def warmup(self) -> int: ...
    @property
    def system_prompt_tokens(self) -> int: ...


class DrawnWorkload:
    """Conversations made from sizes as they are asked for; identity is symbolic, or ids drawn from the seed."""

    def __init__(
        self,
        name: str,
        knobs: DrawnKnobs,
        setting: Setting,
        sizes: Iterable[Sizes],
        barrier: bool = False,
    ) -> None:
        self.name, self.barrier, self.symbolic, self.warmup = name, barrier, setting.symbolic, knobs.warmup
        self._count, self._knobs, self._setting, self._sizes = knobs.limit or 0, knobs, setting, sizes

    def __len__(self) -> int:
        return self._count

    def _draw(self, stream: int, tokens: int) -> NDArray[np.int32]:
        return self._setting.random(PROMPTS, stream).integers(self._setting.vocab_size, size=tokens, dtype=np.int32)

    def conversations(self) -> Iterator[Conversation]:
        """The conversations, made one by one; O(1) memory."""
        kept = filter(None, map(self._within, self._checked_sizes()))
        knobs = self._knobs
        starts = knobs.starts(self._setting) if isinstance(knobs, TimedKnobs) else repeat(0.0)
        for index, sizes, start_s in zip(range(self._count), kept, starts, strict=False):
            yield Conversation(index, start_s, self._turns(index, sizes))

    def _checked_sizes(self) -> Iterator[Sizes]:
        """All sizes, or ConfigError where so many begin beyond ``max_context`` that the end may never come."""
        refused = 0
        for sizes in self._sizes:
            refused = 0 if self._within(sizes[:1]) else refused + 1
            if refused == _PATIENCE or (refused and isinstance(self._sizes, list)):
                raise ConfigError(
                    f"workload.max_context is {self._knobs.max_context}: {refused} conversations in a row have a first "
                    f"turn beyond it (system prompt {self._knobs.system_prompt_tokens} tokens, then for example "
                    f"{sizes[0][0]} + {sizes[0][1]}); raise it or shorten the turns"
                )
            yield sizes

    def _within(self, sizes: Sizes) -> Sizes:
        if self._knobs.max_context is None:
            return sizes
        context = self._knobs.system_prompt_tokens
        for index, (prompt, output, _) in enumerate(sizes):
            context += prompt + output
            if context > self._knobs.max_context:
                return sizes[:index]
        return sizes

    def _turns(self, index: int, sizes: Sizes) -> tuple[Turn, ...]:
        thinks = [0.0, *(think_s for _, _, think_s in sizes[1:])]
        if self.symbolic:
            return tuple(Turn(p, n, think_s) for (p, n, _), think_s in zip(sizes, thinks, strict=True))
        prompts = [size[0] for size in sizes]
        ids = np.split(self._draw(index + 1, sum(prompts)), np.cumsum(prompts)[:-1])
        rows = zip(sizes, thinks, ids, strict=True)
        return tuple(Turn(p, n, think_s, prompt_ids=prompt_ids) for (p, n, _), think_s, prompt_ids in rows)

    def new_log(self, conversation: Conversation) -> TokenLog:
        """A log that holds the system prompt."""
        if not self.symbolic:
            return IdLog(self._draw(0, self._knobs.system_prompt_tokens))
        log = StreamLog(conversation.id + 1, self._knobs.system_prompt_tokens)
        log.extend(self._knobs.system_prompt_tokens)
        return log
