"""Measured turns, put together: the rows of ``quality.parquet`` and the figures of ``summary.json``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .intervals import Bootstrap
from .measures import StepMeasures

ALL, SERVED = "all", "served"  # every task; what a run served, where no reply is right or wrong
ROWS = "quality.parquet"
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MeasuredTurn:
    """A measured reply.

    Attributes
    ----------
    exact: 1 if the model's own reply is the right one, else 0; None where nothing is right or wrong (running text).
    full_exact: the same of the full cache's reply, None where there is none.
    f1: of the words that reply and right answer share, where the answer is a text, else None.
    full_kv_bytes: of the K/V of one token under the full cache.
    text_bytes: of the reply as text, None where tokens are not text.
    metric: what ``exact`` is by, where that is not the right reply word for word.
    """

    task: str
    length: int
    episode: int
    turn: int
    steps: tuple[StepMeasures, ...]
    exact: float | None
    full_exact: float | None
    full_kv_bytes: float
    f1: float | None = None
    text_bytes: int | None = None
    metric: str | None = None

    def mean(self, name: str) -> float:
        """Of a figure over the steps that have it; NaN where none has."""
        return _mean([math.nan if (value := getattr(step, name)) is None else value for step in self.steps])

    @property
    def top1(self) -> float:
        """Share of the steps in which the choice is the full cache's."""
        return _mean([math.nan if step.agrees is None else float(step.agrees) for step in self.steps])

    @property
    def attention_error(self) -> float:
        """Mean over steps and layers."""
        return float(self.layer_errors.mean()) if len(self.layer_errors) else float("nan")

    @property
    def layer_errors(self) -> Values:
        """Mean over steps, by layer; empty where they were not measured."""
        known = [step.attention_error for step in self.steps if step.attention_error is not None]
        return np.mean(np.array(known, np.float64), axis=0) if known else np.empty(0)

    @property
    def kv_share(self) -> float:
        """Bytes that the context takes, K/V and the policy's own, as a share of the full cache's: mean over steps."""
        return _mean([_share(step, self.full_kv_bytes) for step in self.steps])


def _share(step: StepMeasures, full_kv_bytes: float) -> float:
    if step.kv_bytes is None or step.state_bytes is None:
        return math.nan
    return (step.kv_bytes + step.state_bytes) / (step.context_tokens * full_kv_bytes)


COLUMNS = (
    *("budget", "task", "length", "episode", "turn", "step", "exact", "f1", "kv_share", "token", "chosen", "bits"),
    *("reference_chosen", "reference_bits", "reference_exact"),
    *("kl_nats", "top1", "attention_error", "attention_error_by_layer", "recall"),
    *("context_tokens", "held_tokens", "kv_bytes", "state_bytes"),
)
FIGURES: dict[str, Callable[[MeasuredTurn], float]] = {
    "accuracy": lambda turn: float("nan") if turn.exact is None else turn.exact,
    "f1": lambda turn: float("nan") if turn.f1 is None else turn.f1,
    "kl_nats": lambda turn: turn.mean("kl_nats"),
    "top1": lambda turn: turn.top1,
    "attention_error": lambda turn: turn.attention_error,
    "recall": lambda turn: turn.mean("recall"),
    "kv_share": lambda turn: turn.kv_share,
    "kv_bytes": lambda turn: turn.mean("kv_bytes"),
    "state_bytes": lambda turn: turn.mean("state_bytes"),
    "held_tokens": lambda turn: turn.mean("held_tokens"),
}


def section(turns: Sequence[MeasuredTurn]) -> dict[str, Any]:
    """The figures of one policy and budget: by task, and of ``all`` together, with intervals over episodes."""
    tasks, draws = list(dict.fromkeys(turn.task for turn in turns)), Bootstrap()
    shown = {task: _figures([turn for turn in turns if turn.task == task], draws) for task in tasks}
    for turn in turns:
        shown[turn.task]["metric"] = turn.metric
    asked = [turn for turn in turns if turn.exact is not None]
    return {"tasks": shown, ALL: _figures(asked, draws) if asked else None}


def reference_section(turns: Sequence[MeasuredTurn]) -> dict[str, Any]:
    """As :func:`section` of the full cache's own run, whose figures of the difference say nothing."""
    whole = section(turns)
    for figures in (*whole["tasks"].values(), whole[ALL] or {}):
        for name in ("kl_nats", "top1", "attention_error", "attention_error_by_layer", "recall"):
            figures.pop(name, None)
        for part in (*figures.get("by_turn", ()), *figures.get("by_length", ())):
            part.pop("kl_nats", None)
    return whole


def sample_section(turns: Sequence[MeasuredTurn], share: float) -> dict[str, Any]:
    """The figures of what was judged of a run that served, with intervals over conversations."""
    draws = Bootstrap()
    numbers = sorted({turn.turn for turn in turns})
    parts = {number: [turn for turn in turns if turn.turn == number] for number in numbers}
    return {
        "share": share,
        **_told(turns, draws),
        "by_turn": [{"turn": number, **_told(own, draws)} for number, own in parts.items()],
    }


def _told(turns: Sequence[MeasuredTurn], draws: Bootstrap) -> dict[str, Any]:
    episodes = _by_episode(turns)
    bits = _bits(episodes, draws)
    return {
        "conversations": len(episodes),
        "turns": len(turns),
        "tokens": sum(len(turn.steps) for turn in turns),
        **{name: _interval(episodes, FIGURES[name], draws) for name in ("kl_nats", "top1")},
        **bits,
        "perplexity": _perplexity(bits["bits_per_token"]),
        "reference_perplexity": _perplexity(bits["reference_bits_per_token"]),
    }


def _perplexity(bits: dict[str, float | int | None] | None) -> dict[str, float | int | None] | None:
    """2 to the power of bits per token, of the mean and of the ends of its interval."""
    if bits is None:
        return None
    powers = {name: 2.0**value if (value := bits[name]) is not None else None for name in ("mean", "low", "high")}
    return {**powers, "n": bits["n"]}


def _figures(turns: Sequence[MeasuredTurn], draws: Bootstrap) -> dict[str, Any]:
    episodes = _by_episode(turns)
    layers = [turn.layer_errors for turn in turns if len(turn.layer_errors)]
    return {
        "episodes": len(episodes),
        "turns": len(turns),
        "steps": sum(len(turn.steps) for turn in turns),
        **{name: _interval(episodes, figure, draws) for name, figure in FIGURES.items()},
        **_bits(episodes, draws),
        "attention_error_by_layer": np.mean(layers, axis=0).tolist() if layers else None,
        "by_turn": list(_parts(turns, "turn", draws)),
        "by_length": list(_parts(turns, "length", draws)),
    }


def _parts(turns: Sequence[MeasuredTurn], name: str, draws: Bootstrap) -> Iterator[dict[str, Any]]:
    for value in sorted({getattr(turn, name) for turn in turns}):
        episodes = _by_episode(turn for turn in turns if getattr(turn, name) == value)
        named = {figure: _interval(episodes, FIGURES[figure], draws) for figure in ("accuracy", "kl_nats")}
        yield {
            name: value,
            "episodes": len(episodes),
            **named,
            "bits_per_token": _bits(episodes, draws)["bits_per_token"],
        }


def _by_episode(turns: Iterable[MeasuredTurn]) -> list[list[MeasuredTurn]]:
    found: dict[tuple[str, int, int], list[MeasuredTurn]] = {}
    for turn in turns:
        found.setdefault((turn.task, turn.length, turn.episode), []).append(turn)
    return list(found.values())


def _interval(
    episodes: Sequence[Sequence[MeasuredTurn]], figure: Callable[[MeasuredTurn], float], draws: Bootstrap
) -> Any:
    found = draws.interval([_mean([figure(turn) for turn in turns]) for turns in episodes])
    return None if found is None else found.section()


def _mean(values: Sequence[float]) -> float:
    """Of those that are known; NaN if none is."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else float("nan")


def _bits(episodes: Sequence[Sequence[MeasuredTurn]], draws: Bootstrap) -> dict[str, Any]:
    """What the tokens that follow cost, added up over each episode before dividing."""
    tokens = np.array([sum(len(turn.steps) for turn in turns) for turns in episodes], np.float64)
    known = np.array([all(turn.text_bytes is not None for turn in turns) for turns in episodes], bool)
    size = np.array([sum(turn.text_bytes or 0 for turn in turns) for turns in episodes], np.float64)
    shown: dict[str, Any] = {}
    for start, name in (("", "bits"), ("reference_", "reference_bits")):
        bits = np.array([_sum(turns, name) for turns in episodes], np.float64)
        per_token = draws.interval(bits / np.maximum(tokens, 1), tokens)
        shown[f"{start}bits_per_token"] = None if per_token is None else per_token.section()
        if known.any() and name == "bits":
            per_byte = draws.interval((bits / np.maximum(size, 1))[known], size[known])
            shown["bits_per_byte"] = None if per_byte is None else per_byte.section()
    return {"bits_per_byte": None, **shown}


def _sum(turns: Sequence[MeasuredTurn], name: str) -> float:
    found = [getattr(step, name) for turn in turns for step in turn.steps]
    return float("nan") if None in found else math.fsum(found)


def rows(turns: Sequence[MeasuredTurn], budget: float | None) -> Iterator[dict[str, Any]]:
    """A row for each step."""
    for turn in turns:
        about = {
            "budget": budget,
            "task": turn.task,
            "length": turn.length,
            "episode": turn.episode,
            "turn": turn.turn,
            "exact": turn.exact,
            "reference_exact": turn.full_exact,
            "f1": turn.f1,
            "kv_share": None if math.isnan(turn.kv_share) else turn.kv_share,
        }
        for number, step in enumerate(turn.steps):
            yield {**about, "step": number, **_row(step)}


def _row(step: StepMeasures) -> dict[str, Any]:
    layers = step.attention_error
    return {
        **asdict(step),
        "top1": None if step.agrees is None else float(step.agrees),
        "attention_error": None if layers is None else math.fsum(layers) / len(layers),
        "attention_error_by_layer": layers,
    }


def write_rows(path: Path, found: Iterable[dict[str, Any]]) -> None:
    """Write rows as Parquet, in one piece.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(pa.Table.from_pylist(list(found), _schema()), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _schema() -> Any:
    import pyarrow as pa

    names = ("length", "episode", "turn", "step", "token", "chosen", "reference_chosen", "context_tokens")
    others = {"task": pa.string(), "attention_error_by_layer": pa.list_(pa.float64())}
    kinds = {**dict.fromkeys(names, pa.int64()), **others}
    return pa.schema([(name, kinds.get(name, pa.float64())) for name in COLUMNS])
