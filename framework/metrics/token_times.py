"""When output tokens became available: shared by all requests that decode together."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


class Ticks:
    """Ends of the steps that some requests take together, and how many tokens each of them gets until then."""

    def __init__(self) -> None:
        self._ends_s = array("d")
        self._tokens = array("q")  # in all, this stretch included

    def __len__(self) -> int:
        return len(self._ends_s)

    def append(self, end_s: float, tokens: int) -> None:
        """``tokens`` more steps have ended, the last one at ``end_s``."""
        self._ends_s.append(end_s)
        self._tokens.append(tokens + (self._tokens[-1] if self._tokens else 0))

    def tokens(self, first: int, stop: int) -> int:
        """Tokens of the stretches ``first`` .. ``stop``."""
        return (self._tokens[stop - 1] if stop else 0) - (self._tokens[first - 1] if first else 0)

    def pair(self, index: int) -> tuple[float, int]:
        """End and tokens of one stretch."""
        return self._ends_s[index], self.tokens(index, index + 1)

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Ends [stretches] in seconds, and the tokens [stretches] of each."""
        tokens: NDArray[np.int64] = np.array([0, *self._tokens], np.int64)
        return np.array(self._ends_s, np.float64), tokens[1:] - tokens[:-1]


@dataclass(frozen=True, slots=True)
class Shared:
    """The stretches ``first`` .. ``stop`` of ``ticks``."""

    ticks: Ticks
    first: int
    stop: int


@dataclass(slots=True, eq=False)
class TokenTimes:
    """Iterates as (time, tokens) pairs: at ``time`` so many output tokens became available, one after another at equal
    distances since the previous pair."""

    parts: list[tuple[float, int] | Shared] = field(default_factory=list)

    def append(self, pair: tuple[float, int]) -> None:
        """Tokens of its own."""
        self.parts.append(pair)

    def share(self, ticks: Ticks, first: int) -> None:
        """Tokens together with others, from the stretch ``first`` of ``ticks`` to its last one so far."""
        if first < len(ticks):
            self.parts.append(Shared(ticks, first, len(ticks)))

    def __len__(self) -> int:
        return sum(part.stop - part.first if isinstance(part, Shared) else 1 for part in self.parts)

    def __iter__(self) -> Iterator[tuple[float, int]]:
        for part in self.parts:
            if isinstance(part, Shared):
                yield from map(part.ticks.pair, range(part.first, part.stop))
            else:
                yield part

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenTimes) and list(self) == list(other)

    def __getitem__(self, index: int) -> tuple[float, int]:
        return list(self)[index]
