"""Questions from files, as LongBench and RULER write them, through the model's own tokenizer."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol as Contract

import numpy as np

from ..schema import ConfigError
from ..workloads.reading import Row, read_rows
from .cases import Case, CaseTurn, Ids
from .episodes import Protocol

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextTokenizer(Contract):
    """A model's tokenizer, both ways."""

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""
        ...


@dataclass(frozen=True, slots=True)
class FileQuestion:
    """One line of a file. ``every``: all of ``accepted`` are wanted in the reply, as in RULER; else any of them, as in
    LongBench."""

    where: str
    context: str
    question: str
    accepted: tuple[str, ...]
    every: bool


def read_questions(path: Path) -> list[FileQuestion]:
    """The questions of a JSON array or of JSON lines: ``context``, ``input`` or ``question`` and ``answers``
    (LongBench), or ``input`` and ``outputs`` (RULER). Other keys are passed over.

    Raises
    ------
    ConfigError
        Naming file, line and key of what is missing or wrong.
    """
    if not path.is_file():
        raise ConfigError(f"task.files: {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    return [_question(row) for row in read_rows(path)]


def _question(row: Row) -> FileQuestion:
    every = "outputs" in row
    accepted = _texts(row, "outputs" if every else "answers")
    asked = row.text("question" if "question" in row else "input")
    context = row.text("context") if "context" in row else ""
    if not (context + asked).strip():
        raise row.wrong("input", "a text that is not empty")
    return FileQuestion(row.where, context, asked, accepted, every)


def _texts(row: Row, key: str) -> tuple[str, ...]:
    value = row.values.get(key)
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise row.wrong(key, "a text, or a list of texts, none of them empty")
    return tuple(found)


def file_cases(
    questions: Sequence[FileQuestion],
    name: str,
    tokenizer: TextTokenizer,
    protocol: Protocol,
    answer_tokens: int,
    longest: int | None,
) -> Iterator[Case]:
    """A case for each question; the model's reply is ``answer_tokens`` long.

    ``longest``: contexts with more tokens lose their middle, as LongBench does. No template is put around: what a model
    wants to be told belongs into the file.

    Raises
    ------
    ConfigError
        If a question has no context that could be compressed before it is known (``agnostic``).
    """
    for number, question in enumerate(questions):
        context = _cut(tokenizer.encode(question.context), longest)
        asked = tokenizer.encode(f"\n\n{question.question}\n" if question.context else question.question)
        yield Case(name, 0, number, tuple(_turns(question, context, asked, protocol, answer_tokens)))


def _turns(
    question: FileQuestion, context: list[int], asked: list[int], protocol: Protocol, tokens: int
) -> Iterator[CaseTurn]:
    if protocol == "aware":
        whole = _ids(context + asked)
        yield CaseTurn(whole, None, tokens, accepted=question.accepted, every=question.every, before_cut=1)
        return
    if len(context) < 2:
        found = f"{question.where}: 'context' has {len(context)} tokens, expected at least 2"
        raise ConfigError(f"{found}: protocol=query_agnostic compresses it before the question")
    yield CaseTurn(_ids(context[:-1]), _ids(context[-1:]), 1, measured=False)
    yield CaseTurn(_ids(asked), None, tokens, accepted=question.accepted, every=question.every)


def _cut(ids: list[int], longest: int | None) -> list[int]:
    if longest is None or len(ids) <= longest:
        return ids
    half = longest // 2
    return ids[: longest - half] + ids[len(ids) - half :]


def _ids(tokens: Sequence[int]) -> Ids:
    return np.array(tokens, np.int32)


# --- what a reply is worth ----------------------------------------------------------------------------------------


def score(reply: str, accepted: Sequence[str], every: bool) -> float:
    """Share of ``accepted`` that the reply contains (``every``), or 1 if it contains any of them, else 0; case,
    punctuation and articles do not count."""
    said = f" {_normal(reply)} "
    found = [f" {_normal(text)} " in said or (not _normal(text) and text in reply) for text in accepted]
    return float(np.mean(found)) if every else float(any(found))


def f1(reply: str, accepted: Sequence[str]) -> float:
    """The best F1 of the words of ``reply`` and of one of ``accepted``."""
    return max(_f1(_normal(reply).split(), _normal(text).split()) for text in accepted)


def _f1(said: Sequence[str], right: Sequence[str]) -> float:
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right)) if shared else 0.0


def _normal(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
