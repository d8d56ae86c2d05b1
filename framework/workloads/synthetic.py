"""Chats drawn from distributions: the embedded default workload."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .common import LENGTHS, Setting, TimedKnobs, require_range
from .conversation import Workload
from .drawn import DrawnWorkload, Sizes

_GROUP = 1000  # conversations are drawn in groups, so that conversation i does not depend on ``limit``


@dataclass(frozen=True, slots=True)
class Preset:
    """Means per conversation (turns) and per request (tokens), and the standard deviation of the tokens' logarithm."""

    turns: float
    prompt_tokens: float
    output_tokens: float
    prompt_spread: float
    output_spread: float


PRESETS = {
    "sharegpt": Preset(5.56, 37.77, 204.58, 1.1, 0.7),
    "ultrachat": Preset(3.86, 51.78, 257.81, 0.7, 0.5),
}


@dataclass(frozen=True)
class SyntheticChat(TimedKnobs):
    """Chats with the lengths of ShareGPT or UltraChat.

    Means are those of Pensieve (arXiv 2312.05516, Table 2). The shapes are ours: geometric turns, lognormal lengths;
    the spreads of ``sharegpt`` were fitted roughly to 252 ShareGPT requests (LMBenchmark, sharegpt/run.json: log spread
    of prompts 1.1; replies 0.9, relative deviation 0.6), those of ``ultrachat`` are assumed. Deviation: tails are
    lighter than the real ones (of the data 0.57 % of conversations exceed 16,384 tokens, of these almost none). Turns
    are stratified in groups of 1,000 conversations, so that small samples keep the mean.

    Attributes
    ----------
    preset: whose lengths.
    system_prompt_tokens: every conversation begins with the same so many tokens.
    min_turns, max_turns: a number of turns outside is set to the nearest inside.
    input_scale, output_scale: multiply the mean lengths of prompts and replies.
    """

    limit: int | None = 32
    max_context: int | None = 8192
    rate: float | None = 1.0
    think_time_s: float | None = 60.0
    preset: Literal["sharegpt", "ultrachat"] = "sharegpt"
    system_prompt_tokens: int = 0
    min_turns: int = 1
    max_turns: int | None = None
    input_scale: float = 1.0
    output_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is None or self.think_time_s is None:
            raise ValueError("limit and think_time_s must be numbers: there is no data whose own they could be")
        require_range("system_prompt_tokens", self.system_prompt_tokens, 0)
        require_range("min_turns", self.min_turns, 1)
        require_range("max_turns", self.max_turns, self.min_turns)
        require_range("input_scale", self.input_scale, 0, above=True)
        require_range("output_scale", self.output_scale, 0, above=True)

    def open(self, setting: Setting) -> Workload:
        return DrawnWorkload("synthetic_chat", self, setting, _Chats(self, setting))


class _Chats:
    """Endless sizes of chats, the same at each iteration."""

    def __init__(self, knobs: SyntheticChat, setting: Setting) -> None:
        self._knobs, self._setting = knobs, setting

    def __iter__(self) -> Iterator[Sizes]:
        group = 0
        while True:
            yield from self._group(self._setting.random(LENGTHS, group))
            group += 1

    def _group(self, random: np.random.Generator) -> Iterator[Sizes]:
        knobs, preset = self._knobs, PRESETS[self._knobs.preset]
        quantile = (random.permutation(_GROUP) + random.random(_GROUP)) / _GROUP
        geometric = 1 + np.floor(np.log1p(-quantile) / np.log1p(-1 / preset.turns)).astype(np.int64)
        turns = np.clip(geometric, knobs.min_turns, knobs.max_turns)
        total = int(turns.sum())
        prompts = _lengths(random, preset.prompt_tokens * knobs.input_scale, preset.prompt_spread, total)
        outputs = _lengths(random, preset.output_tokens * knobs.output_scale, preset.output_spread, total)
        think_s = random.exponential(size=total) * (knobs.think_time_s or 0.0) * knobs.time_scale
        drawn = zip(prompts.tolist(), outputs.tolist(), think_s.tolist(), strict=True)
        for count in turns.tolist():
            yield list(islice(drawn, count))


def _lengths(random: np.random.Generator, mean: float, spread: float, count: int) -> NDArray[np.int64]:
    """Rounded lognormal lengths >= 1."""
    drawn = random.lognormal(np.log(mean) - spread**2 / 2, spread, count)
    return np.maximum(1, np.rint(drawn)).astype(np.int64)
