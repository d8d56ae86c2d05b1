"""The retrieval episodes in words, for models that were trained on text: the same tasks, through their tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .cases import Case, CaseTurn
from .episodes import TASKS, Protocol
from .wording import TextTokenizer, opened

_FILLER = (
    " The road runs along the river for a while.",
    " Some of the boats were out before sunrise.",
    " It rained in the hills and nobody minded.",
    " A dog slept in the shade of the old mill.",
    " The market opens early and closes at noon.",
    " Bread was cheap that year, and so was salt.",
)
_OPENING = "Read the text and remember every number in it.\n"
_SYLLABLES = tuple(c + v for c in "bdfgklmnprstvz" for v in "aeiou")
_HELD_OUT = 3  # a stream of its own, apart from those of the episodes in ids
_COPIED, _GIVEN = 8, 2


@dataclass(frozen=True, slots=True)
class _Draft:
    """Sentences that hold something, and what may be asked: (question, answer)."""

    needles: Sequence[str]
    asked: Sequence[tuple[str, str]]


def sentence_case(
    task: str,
    length: int,
    number: int,
    seed: int,
    tokenizer: TextTokenizer,
    protocol: Protocol,
    questions: int | None = None,
) -> Case:
    """Draw one episode of about ``length`` tokens (never more); the same arguments give the same one.

    Raises
    ------
    ValueError
        If what is asked does not fit into ``length`` tokens.
    """
    rng = np.random.default_rng([_HELD_OUT, TASKS.index(task), length, seed, number])
    draft = _DRAFTS[task](rng, length)
    wanted = (2 if task == "multi_turn" else 1) if questions is None else questions
    chosen = [draft.asked[int(which)] for which in rng.permutation(len(draft.asked))[:wanted]]
    asked = [(tokenizer.continued(f"\n{question}"), tokenizer.continued(f" {answer}")) for question, answer in chosen]
    room = length - sum(len(question) + len(answer) for question, answer in asked)
    context = _strewn(rng, draft.needles, tokenizer, room)
    first, *rest = [CaseTurn(_ids(question), _ids(answer), len(answer)) for question, answer in asked]
    if protocol == "aware":
        whole = CaseTurn(np.concatenate([_ids(context), first.prompt]), first.reply, first.tokens, before_cut=1)
        return Case(task, length, number, (whole, *rest))
    alone = CaseTurn(_ids(context[:-1]), _ids(context[-1:]), 1, measured=False)
    return Case(task, length, number, (alone, first, *rest))


def _strewn(rng: np.random.Generator, needles: Sequence[str], tokenizer: TextTokenizer, room: int) -> list[int]:
    """The needles in random order, filler between them, as many sentences as there is room for."""
    found = [tokenizer.continued(f" {needles[int(which)]}") for which in rng.permutation(len(needles))]
    opening = opened(tokenizer, _OPENING)
    left = room - len(opening) - sum(map(len, found))
    if left < 0:
        raise ValueError(f"length leaves {room} tokens for the context, {-left} too few for what is asked of it")
    pieces = [tokenizer.continued(sentence) for sentence in _FILLER]
    filler: list[list[int]] = []
    while left >= len(piece := pieces[int(rng.integers(len(pieces)))]):
        filler.append(piece)
        left -= len(piece)
    slots = np.sort(rng.integers(0, len(filler) + 1, len(found)))
    context = list(opening)
    for i in range(len(filler) + 1):
        for at, needle in zip(slots, found, strict=True):
            if at == i:
                context += needle
        context += filler[i] if i < len(filler) else []
    return context


def _ids(tokens: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(tokens, np.int32)


def _names(rng: np.random.Generator, count: int) -> list[str]:
    """Different invented names."""
    codes = rng.choice(len(_SYLLABLES) ** 2, count, replace=False)
    return [(_SYLLABLES[code // len(_SYLLABLES)] + _SYLLABLES[code % len(_SYLLABLES)]).capitalize() for code in codes]


def _numbers(rng: np.random.Generator, count: int) -> list[str]:
    return [str(number) for number in 10_000 + rng.choice(90_000, count, replace=False)]


def _told(rng: np.random.Generator, count: int) -> _Draft:
    names, numbers = _names(rng, count), _numbers(rng, count)
    needles = [f"The number of {name} is {number}." for name, number in zip(names, numbers, strict=True)]
    asked = [(_asking(name), number) for name, number in zip(names, numbers, strict=True)]
    return _Draft(needles, asked)


def _asking(name: str) -> str:
    return f"What is the number of {name}? The number of {name} is"


def _passkey(rng: np.random.Generator, length: int) -> _Draft:
    (number,) = _numbers(rng, 1)
    return _Draft([f"The pass key is {number}."], [("What is the pass key? The pass key is", number)])


def _multi_key(rng: np.random.Generator, length: int) -> _Draft:
    return _told(rng, min(max(length // 128, 2), 32))


def _associative(rng: np.random.Generator, length: int) -> _Draft:
    return _told(rng, min(max(length // 48, 2), 128))


def _multi_hop(rng: np.random.Generator, length: int) -> _Draft:
    count = min(max(length // 256, 1), 16)
    names, numbers = _names(rng, 2 * count), _numbers(rng, count)
    pairs = list(zip(names[:count], names[count:], numbers, strict=True))
    links = [f"The number of {one} is the number of {other}." for one, other, _ in pairs]
    held = [f"The number of {other} is {number}." for _, other, number in pairs]
    asked = [
        (f"What is the number of {one}? It is the number of", f"{other}, which is {number}")
        for one, other, number in pairs
    ]
    return _Draft([*links, *held], asked)


def _copy(rng: np.random.Generator, length: int) -> _Draft:
    count = min(max(length // 256, 1), 8)
    names = _names(rng, count * _COPIED)
    rows = [names[_COPIED * row : _COPIED * (row + 1)] for row in range(count)]
    needles = [f"In a row stood {', '.join(row)}." for row in rows]
    asked = [
        (f"Who stood in a row? In a row stood {', '.join(row[:_GIVEN])},", ", ".join(row[_GIVEN:])) for row in rows
    ]
    return _Draft(needles, asked)


_DRAFTS: Mapping[str, Callable[[np.random.Generator, int], _Draft]] = {
    "passkey": _passkey,
    "multi_key": _multi_key,
    "multi_hop": _multi_hop,
    "associative": _associative,
    "copy": _copy,
    "multi_turn": _multi_key,
}
