"""Train the retrieval model: ``python -m kvarena.framework.quality.train_recall --out DIR``.

A Llama of three layers learns to answer :mod:`.episodes` from their context. It must find what stands anywhere before:
nothing but attention over the whole context answers them. Two things keep that to minutes on a CPU: a curriculum, from
rows that say the same twice over short episodes to long ones, and first weights that are a rough look-up of what
followed a token before (``execution.lookup_start``).

The trained model notes at each position which token came before it, and finds a value there: what a cache has to keep
of a span is the span and the token after it. All else can go, and what is asked for cannot.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..execution.model_knobs import RandomModel
from .episodes import PROTOCOLS, SHORTEST, TASKS, Episode, Protocol, episode
from .train import Batch, Schedule, arguments, set_threads, train, write_card
from .vocabulary import MARKERS, QUERY, VOCAB_SIZE

if TYPE_CHECKING:
    from ..execution.trainee import PlainModel

MODEL = RandomModel(
    vocab_size=VOCAB_SIZE,
    hidden_size=128,
    intermediate_size=256,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_positions=512,
    tied_embeddings=True,
    dtype="float32",
    config={
        "attention_bias": True,
        "initializer_range": 0.06,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},  # slow turns match over long distances
    },
)
CONTEXT = 512
LENGTHS = (64, 128, 256, 512)
TOKENS = 2048  # in a batch
RATE = 3e-3
EPISODES = 100  # judged of each task, length and protocol


@dataclass(frozen=True, slots=True)
class Stage:
    """``steps`` batches of about ``tokens`` tokens in rows of ``longest`` / 2 to ``longest``.

    ``repeated``: rows that say the same twice instead of episodes.
    """

    steps: int
    longest: int
    tokens: int = TOKENS
    repeated: bool = False


STAGES = (
    Stage(100, 48, repeated=True),
    Stage(300, 48),
    Stage(150, 96),
    Stage(150, 192),
    Stage(150, 384),
    Stage(350, CONTEXT),
)


def stage_of(step: int, stages: Sequence[Stage] = STAGES) -> Stage:
    """The stage that ``step`` belongs to; the last one has no end."""
    for stage in stages:
        if step < stage.steps:
            return stage
        step -= stage.steps
    return stages[-1]


def draw(seed: int, step: int, stages: Sequence[Stage] = STAGES) -> Batch:
    """The batch of a step; rows of a batch are equally long."""
    stage, rng = stage_of(step, stages), np.random.default_rng([seed, step])
    length = int(rng.integers(max(SHORTEST, stage.longest // 2), stage.longest + 1))
    rows = max(1, stage.tokens // length)
    if stage.repeated:
        return _repeated(rng, rows, length)
    seeds = rng.integers(0, 2**62, rows)
    return batch([_asked_often(index, length, int(at)) for index, at in enumerate(seeds)], PROTOCOLS[step % 2], length)


def _repeated(rng: np.random.Generator, rows: int, length: int) -> Batch:
    """Different tokens, and the same again."""
    half = length // 2
    ids = np.argsort(rng.random((rows, VOCAB_SIZE - len(MARKERS))), axis=1)[:, :half] + len(MARKERS)
    wanted = np.zeros((rows, 2 * half), np.bool_)
    wanted[:, half + 1 :] = True
    return Batch(np.concatenate([ids, ids], axis=1).astype(np.int64), wanted)


def _asked_often(index: int, length: int, seed: int) -> Episode:
    """An episode of more questions than a judged one has: more to learn from in a row."""
    task = TASKS[index % len(TASKS)]
    often = {"passkey": 1, "multi_hop": max(1, length // 64), "associative": max(3, length // 16)}
    often |= {"copy": max(1, length // 96)}
    return episode(task, length, seed, split="train", questions=often.get(task, max(2, length // 32)))


def batch(episodes: Iterable[Episode], protocol: Protocol, length: int) -> Batch:
    """Episodes as rows of ``length`` tokens; the loss is taken of the replies."""
    rows = [_row(one, protocol, length) for one in episodes]
    return Batch(np.array([ids for ids, _ in rows], np.int64), np.array([wanted for _, wanted in rows], np.bool_))


def _row(one: Episode, protocol: Protocol, length: int) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    wanted: list[bool] = []
    for turn in one.turns(protocol):
        ids += turn.prompt + turn.answer
        wanted += [False] * len(turn.prompt) + [True] * len(turn.answer)
    short = length - len(ids)  # the reply to the context, under the protocol that has none
    return ids + [QUERY] * short, wanted + [False] * short


def accuracy(model: PlainModel, task: str, length: int, protocol: Protocol, count: int, first_seed: int = 0) -> float:
    """The share of held-out episodes of which every token of every reply is the likeliest, given those before."""
    right = []
    for start in range(0, count, 8):
        seeds = range(first_seed + start, first_seed + min(start + 8, count))
        rows = batch([episode(task, length, seed) for seed in seeds], protocol, length)
        hit = model.predicted(rows.tokens)[:, :-1] == rows.tokens[:, 1:]
        right.append((hit | ~rows.wanted[:, 1:]).all(axis=1))
    return float(np.concatenate(right).mean())


def scores(model: PlainModel, count: int = EPISODES) -> dict[str, dict[str, dict[str, float]]]:
    """:func:`accuracy` with the full cache by protocol, task and length."""
    return {
        protocol: {
            task: {str(length): round(accuracy(model, task, length, protocol, count), 4) for length in LENGTHS}
            for task in TASKS
        }
        for protocol in PROTOCOLS
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train, judge and write the checkpoint; the exit status."""
    given = arguments(__doc__ or "").parse_args(argv)
    from ..execution.trainee import Trainee

    set_threads(given.threads)
    trainee = Trainee(MODEL, given.seed, lookup=True)
    schedule = Schedule(sum(stage.steps for stage in STAGES) if given.steps is None else given.steps, RATE, cooling=0.3)
    outcome = train(trainee, lambda step: draw(given.seed, step), schedule, given.out, "recall")
    trainee.save(given.out)
    with trainee.judged() as model:
        about = {"context": CONTEXT, "episodes": EPISODES, "scores": scores(model)}
    write_card(given.out, "kvarena.framework.quality.train_recall", given, MODEL, outcome, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
