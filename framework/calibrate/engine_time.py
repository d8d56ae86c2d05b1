"""What the engine takes outside the model: measured while it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np

from ..execution.contract import Batch, StepResult
from ..execution.tables import OperatorTables
from .smoothing import non_negative


@dataclass(frozen=True, slots=True)
class Between:
    """The engine's own time from one iteration to the next, which has ``sequences`` segments; ``prompts``: of the two
    iterations, on average, how many prompts they hold."""

    seconds: float
    sequences: int
    prompts: float


@dataclass
class WatchedLinks:
    """Links that note for how long somebody waited for them."""

    links: Any
    waited_s: float = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.links, name)

    def wait(self, timeout_s: float | None = None) -> None:
        """See :class:`~..execution.transfers.Links`."""
        began_s = perf_counter()
        self.links.wait(timeout_s)
        self.waited_s += perf_counter() - began_s


@dataclass
class Watched:
    """An executor that notes how long the engine takes from one iteration to the next.

    Waiting for arrivals costs nothing on a clock that skips it; ``links``, if there are any, tell what to leave out:
    how long the engine waited for transfers while nothing ran.
    """

    executor: Any
    links: WatchedLinks | None = None
    between: list[Between] = field(default_factory=list)
    _ended_s: float | None = None
    _prompts: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executor, name)

    def run(self, batch: Batch) -> StepResult:
        """See :class:`~..execution.contract.Executor`."""
        began_s = perf_counter()
        prompts = sum(segment.length > 1 for segment in batch.segments)
        if self._ended_s is not None:
            both = (self._prompts + prompts) / 2  # what is admitted comes before, what is published after
            own_s = max(0.0, began_s - self._ended_s - self._waited_s())
            self.between.append(Between(own_s, len(batch.segments), both))
        result: StepResult = self.executor.run(batch)
        self._waited_s()
        self._ended_s, self._prompts = perf_counter(), prompts
        return result

    def _waited_s(self) -> float:
        """Since the last call."""
        if self.links is None:
            return 0.0
        waited_s, self.links.waited_s = self.links.waited_s, 0.0
        return waited_s


@dataclass(frozen=True, slots=True)
class EngineTime:
    """``iteration_s`` + ``sequence_s`` for each sequence in it + ``prompt_s`` for each prompt among them.

    ``spread``: half the distance of the quartiles of what that misses, as a share of the mean.
    """

    iteration_s: float
    sequence_s: float
    prompt_s: float
    iterations: int
    spread: float

    def on(self, tables: OperatorTables) -> OperatorTables:
        """``tables`` with this engine."""
        return replace(tables, iteration_s=self.iteration_s, sequence_s=self.sequence_s, prompt_s=self.prompt_s)


def fit_engine_time(between: Sequence[Between], kept: float = 0.99) -> EngineTime:
    """The plane through the shortest ``kept`` of all iterations, without a part below 0, such that their sum is met.

    Raises
    ------
    ValueError
        If there are fewer than two iterations.
    """
    if len(between) < 2:
        raise ValueError(f"the engine ran {len(between)} iterations that tell its own time, expected 2 or more")
    seconds = np.array([each.seconds for each in between])
    features = np.array([[1.0, each.sequences, each.prompts] for each in between])
    short = seconds <= np.quantile(seconds, kept)
    seconds, features = seconds[short], features[short]
    parts = non_negative(features, seconds)
    parts *= seconds.sum() / max(float((features @ parts).sum()), 1e-12)
    low, high = np.quantile(seconds - features @ parts, (0.25, 0.75))
    iteration_s, sequence_s, prompt_s = parts.tolist()
    spread = float((high - low) / 2 / seconds.mean())
    return EngineTime(iteration_s, sequence_s, prompt_s, len(between), spread)
