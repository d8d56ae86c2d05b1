"""Retrieval episodes: questions whose answers stand somewhere in a long context, drawn from a seed.

An episode is a context in which spans of keys and values are strewn into filler tokens, and one or more questions about
it. Each question costs a few tokens and can be answered by copying, so that an error says that something needed was no
longer in the cache. The same episode is asked by two protocols (:meth:`Episode.turns`): *query-aware*, the first
question ends the prompt that is compressed; *query-agnostic*, the context is a turn of its own and is compressed before
any question is known.

============  ======================  =================  ===========================
task          span in the context     question           answer
============  ======================  =================  ===========================
passkey       k v v v v (one)         query k            v v v v
multi_key     k v v (many)            query k            v v
multi_hop     k1 k2 and k2 v (many)   query k1           k2 v
associative   k v (a quarter of all)  query k            v
copy          v x 8 (some)            query, first two   the other six
multi_turn    k v v (many)            query k, twice     v v
============  ======================  =================  ===========================

No value stands twice in a context, no key has two values, and filler follows each span: an answer is unambiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .vocabulary import BEGIN, KEYS, NOISE, NOTED, QUERY, SEPARATOR, VALUES

Protocol = Literal["aware", "agnostic"]
Split = Literal["train", "held_out"]

TASKS = ("passkey", "multi_key", "multi_hop", "associative", "copy", "multi_turn")
PROTOCOLS: tuple[Protocol, ...] = ("aware", "agnostic")
SHORTEST = 32  # tokens of the shortest episode
_SPLITS: Mapping[Split, int] = {"train": 1, "held_out": 2}
_FRAME = 3  # begin, separator, noted
_COPIED, _GIVEN = 8, 2  # tokens of a span to copy, and how many of them the question gives


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    ``evidence``: positions in the context of what the answer is copied from, its keys included. (A model that notes at
    each position which token came before needs the position after a span as well; that always holds filler.)
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    evidence: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation: a prompt and the right reply.

    Attributes
    ----------
    evidence: positions, in the whole conversation, that the reply is copied from; empty if nothing is asked.
    asked: False for a context alone, whose reply (``noted``) is no retrieval and is not to be scored.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    evidence: tuple[int, ...]
    asked: bool


@dataclass(frozen=True, slots=True)
class Episode:
    """A context and the questions about it. ``context`` starts with ``begin`` and ends with ``separator``."""

    task: str
    context: tuple[int, ...]
    questions: tuple[Question, ...]

    def turns(self, protocol: Protocol) -> tuple[Turn, ...]:
        """The conversation: the first question with the context (``aware``), or all after it (``agnostic``).

        Raises
        ------
        ValueError
            If ``protocol`` is neither.
        """
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
        asked = [Turn(q.prompt, q.answer, q.evidence, True) for q in self.questions]
        if protocol == "agnostic":
            return (Turn(self.context, (NOTED,), (), False), *asked)
        first = asked[0]
        return (Turn(self.context + first.prompt, first.answer, first.evidence, True), *asked[1:])

    def tokens(self, protocol: Protocol) -> tuple[int, ...]:
        """The whole conversation in a row, right replies included."""
        return tuple(token for turn in self.turns(protocol) for token in turn.prompt + turn.answer)


@dataclass(frozen=True, slots=True)
class _Draft:
    """What a task puts into the context, and what it may ask: (prompt, answer, spans that hold the evidence)."""

    spans: Sequence[tuple[int, ...]]
    asked: Sequence[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def episode(task: str, length: int, seed: int, *, split: Split = "held_out", questions: int | None = None) -> Episode:
    """Draw one episode; the same arguments give the same one.

    Parameters
    ----------
    task: one of :data:`TASKS`.
    length: tokens of the whole conversation under ``agnostic``, replies included (one more than under ``aware``).
    seed: at least 0. Seeds of the two splits are different streams: what is trained on is never what is judged.
    split: ``train`` or ``held_out``.
    questions: how many are asked, at most as many as the context answers; None: one, two in ``multi_turn``.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """
    _check(task, length, seed, split, questions)
    rng = np.random.default_rng([_SPLITS[split], TASKS.index(task), length, seed])
    draft = _TASKS[task](rng, length)
    wanted = (2 if task == "multi_turn" else 1) if questions is None else questions
    chosen = rng.permutation(len(draft.asked))[:wanted]
    asked = [draft.asked[int(which)] for which in chosen]
    room = length - _FRAME - sum(len(prompt) + len(answer) for prompt, answer, _ in asked)
    order = rng.permutation(len(draft.spans))
    starts, body = _strewn(rng, [draft.spans[int(which)] for which in order], room)
    places = {int(which): range(s, s + len(draft.spans[int(which)])) for which, s in zip(order, starts, strict=True)}
    found = [Question(p, a, tuple(at for span in spans for at in places[span])) for p, a, spans in asked]
    return Episode(task, (BEGIN, *body, SEPARATOR), tuple(found))


def episodes(task: str, length: int, count: int, seed: int, *, split: Split = "held_out") -> Iterator[Episode]:
    """``count`` different episodes of one task; other seeds give others (up to 10**6 episodes of a seed)."""
    if not 0 <= count <= 10**6:
        raise ValueError(f"count is {count}, expected 0 to {10**6}")
    return (episode(task, length, seed * 10**6 + index, split=split) for index in range(count))


def _check(task: str, length: int, seed: int, split: str, questions: int | None) -> None:
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
    if split not in _SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(_SPLITS)}")
    if length < SHORTEST:
        raise ValueError(f"length is {length}, expected at least {SHORTEST} tokens")
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected at least 0")
    if questions is not None and questions < 1:
        raise ValueError(f"questions is {questions}, expected at least 1")


def _strewn(rng: np.random.Generator, spans: Sequence[tuple[int, ...]], room: int) -> tuple[list[int], list[int]]:
    """``room`` tokens of filler with ``spans`` in it, in order and never touching: their positions (``begin`` is 0) and
    the tokens."""
    filler = room - sum(map(len, spans)) - len(spans)  # one filler token follows each span
    assert filler >= 0, "a task puts more into a context than the shortest episode holds"
    before = np.sort(rng.integers(0, filler + 1, len(spans))) + np.arange(len(spans))  # filler ahead of each span
    noise = [int(token) for token in rng.integers(NOISE.start, NOISE.stop, filler + len(spans))]
    starts: list[int] = []
    body: list[int] = []
    used = 0
    for until, span in zip(before, spans, strict=True):
        body += noise[used : int(until)]
        used = int(until)
        starts.append(len(body) + 1)
        body += span
    return starts, body + noise[used:]


# --- what the tasks put into the context --------------------------------------------------------------------------


def _draw(rng: np.random.Generator, ids: range, count: int) -> list[int]:
    """``count`` different tokens of ``ids``."""
    return [int(token) for token in rng.choice(np.arange(ids.start, ids.stop), count, replace=False)]


def _pairs(rng: np.random.Generator, count: int, width: int) -> _Draft:
    """``count`` keys, each with ``width`` values."""
    keys, values = _draw(rng, KEYS, count), _draw(rng, VALUES, count * width)
    held = [tuple(values[width * index : width * (index + 1)]) for index in range(count)]
    spans = [(key, *value) for key, value in zip(keys, held, strict=True)]
    asked = [((QUERY, key), value, (i,)) for i, (key, value) in enumerate(zip(keys, held, strict=True))]
    return _Draft(spans, asked)


def _passkey(rng: np.random.Generator, length: int) -> _Draft:
    return _pairs(rng, 1, 4)


def _multi_key(rng: np.random.Generator, length: int) -> _Draft:
    return _pairs(rng, min(max(length // 24, 2), 16), 2)


def _multi_hop(rng: np.random.Generator, length: int) -> _Draft:
    count = min(max(length // 48, 1), 8)
    keys, values = _draw(rng, KEYS, 2 * count), _draw(rng, VALUES, count)
    first, second = keys[:count], keys[count:]
    spans = [*zip(first, second, strict=True), *zip(second, values, strict=True)]
    asked = [((QUERY, first[i]), (second[i], values[i]), (i, count + i)) for i in range(count)]
    return _Draft(spans, asked)


def _associative(rng: np.random.Generator, length: int) -> _Draft:
    return _pairs(rng, min(max(length // 8, 4), 64), 1)


def _copy(rng: np.random.Generator, length: int) -> _Draft:
    count = min(max(length // 64, 1), 8)
    values = _draw(rng, VALUES, count * _COPIED)
    spans = [tuple(values[_COPIED * index : _COPIED * (index + 1)]) for index in range(count)]
    return _Draft(spans, [((QUERY, *span[:_GIVEN]), span[_GIVEN:], (i,)) for i, span in enumerate(spans)])


_TASKS: Mapping[str, Callable[[np.random.Generator, int], _Draft]] = {
    "passkey": _passkey,
    "multi_key": _multi_key,
    "multi_hop": _multi_hop,
    "associative": _associative,
    "copy": _copy,
    "multi_turn": _multi_key,
}
