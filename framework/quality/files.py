"""Questions from files, as LongBench and RULER write them, through the model's own tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..schema import ConfigError
from ..workloads.reading import Row, read_rows
from .cases import Case, CaseTurn, Ids
from .episodes import Protocol
from .longbench import Dataset, known_dataset, split_prompt
from .scoring import Answers
from .wording import TextTokenizer, opened

ANSWER_TOKENS = 32
_OTHERS = "others"  # rows of no known dataset in a file that has others


@dataclass(frozen=True, slots=True)
class FileQuestion:
    """One line of a file.

    Attributes
    ----------
    where: file and line. dataset: that LongBench knows, or None.
    opening: what comes first, with the context; empty: there is none.
    asked: what follows it.
    """

    where: str
    dataset: Dataset | None
    opening: str
    asked: str
    answers: Answers


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long cases may be, in tokens.

    Attributes
    ----------
    reply: of each; None: as its dataset has it, or :data:`ANSWER_TOKENS`.
    context: what comes first, with the context, loses its middle where it is longer, as LongBench does; None: never.
    case: of a whole one; None: any.
    """

    reply: int | None = None
    context: int | None = None
    case: int | None = None


def read_questions(path: Path, prompts: Mapping[str, str] | None = None) -> list[FileQuestion]:
    """The questions of a JSON array or of JSON lines: ``context``, ``input`` or ``question`` and ``answers``
    (LongBench), or ``input`` and ``outputs`` (RULER). Other keys are passed over, but ``dataset``: rows of one that
    LongBench knows get its prompt, metric and length of reply; ``all_classes`` where it chooses among classes.

    ``prompts``: by dataset, instead of our own.

    Raises
    ------
    ConfigError
        Naming file, line and key of what is missing or wrong.
    """
    if not path.is_file():
        raise ConfigError(f"task.files: {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    return [_question(row, prompts or {}) for row in read_rows(path)]


def _question(row: Row, prompts: Mapping[str, str]) -> FileQuestion:
    every = "outputs" in row
    texts = _texts(row, "outputs" if every else "answers")
    asked = row.text("question" if "question" in row else "input")
    context = row.text("context") if "context" in row else ""
    if not (context + asked).strip():
        raise row.wrong("input", "a text that is not empty")
    name = row.text("dataset") if "dataset" in row and not every else ""
    dataset = known_dataset(name, row.where)
    prompt = prompts.get(name) or (dataset and prompts.get(dataset.name, dataset.prompt))
    asked += row.text("answer_prefix") if "answer_prefix" in row else ""
    around = split_prompt(prompt, context, asked) if prompt else (context, f"\n\n{asked}\n" if context else asked)
    answers = _answers(row, dataset, texts) if dataset else Answers(texts, "every" if every else "found")
    return FileQuestion(row.where, dataset, *around, answers)


def _texts(row: Row, key: str) -> tuple[str, ...]:
    value = row.values.get(key)
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise row.wrong(key, "a text, or a list of texts, none of them empty")
    return tuple(found)


def _answers(row: Row, dataset: Dataset, texts: tuple[str, ...]) -> Answers:
    classes: tuple[str, ...] = ()
    if dataset.metric == "class":
        classes = _texts(row, "all_classes")
        if not set(texts) <= set(classes):
            raise row.wrong("answers", "some of 'all_classes'")
    if dataset.metric == "number" and not all(re.search(r"\d", text) for text in texts):
        raise row.wrong("answers", f"a number in each: 'dataset' is {dataset.name!r}")
    return Answers(texts, dataset.metric, classes, dataset.one_line)


def file_cases(
    questions: Sequence[FileQuestion], name: str, tokenizer: TextTokenizer, protocol: Protocol, sizes: Sizes
) -> Iterator[Case]:
    """A case for each question. ``name``: of the file; the cases' task, with the dataset where the file has several.

    Raises
    ------
    ConfigError
        If a question has no context that could be compressed before it is known (``agnostic``), or is too long.
    """
    several = len({question.dataset and question.dataset.name for question in questions}) > 1
    parts = [_tokens(question, tokenizer, sizes) for question in questions]
    if sizes.case is not None:
        _check_lengths(questions, parts, sizes.case)
    turns = _aware if protocol == "aware" else _agnostic
    for number, (question, (context, asked, tokens)) in enumerate(zip(questions, parts, strict=True)):
        told = question.dataset.name if question.dataset else _OTHERS
        yield Case(f"{name}:{told}" if several else name, 0, number, turns(question, context, asked, tokens))


def _tokens(question: FileQuestion, tokenizer: TextTokenizer, sizes: Sizes) -> tuple[list[int], list[int], int]:
    """The ids of what comes first with the context, those of what follows, and how many a reply has."""
    context = _cut(opened(tokenizer, question.opening), sizes.context) if question.opening else []
    asked = tokenizer.continued(question.asked) if context else opened(tokenizer, question.asked)
    return context, asked, sizes.reply or (question.dataset.tokens if question.dataset else ANSWER_TOKENS)


def _check_lengths(
    questions: Sequence[FileQuestion], parts: Sequence[tuple[list[int], list[int], int]], longest: int
) -> None:
    room = min(longest - len(asked) - tokens for context, asked, tokens in parts)
    for question, (context, asked, tokens) in zip(questions, parts, strict=True):
        found = len(context) + len(asked) + tokens
        if found <= longest:
            continue
        told = f"{question.where}: {found} tokens with the reply, the model has {longest} positions"
        how = f"; task.file_tokens={room} would leave out the middle of longer contexts, as LongBench does"
        raise ConfigError(told + (how if context and room > 1 else ""))


def _aware(question: FileQuestion, context: list[int], asked: list[int], tokens: int) -> tuple[CaseTurn, ...]:
    return (CaseTurn(_ids(context + asked), None, tokens, answers=question.answers, before_cut=1),)


def _agnostic(question: FileQuestion, context: list[int], asked: list[int], tokens: int) -> tuple[CaseTurn, ...]:
    """The context alone, then the question."""
    how = "protocol=query_agnostic compresses the context before the question; task.protocol=query_aware does not"
    if len(context) < 2:
        raise ConfigError(f"{question.where}: 'context' has {len(context)} tokens, expected at least 2: {how}")
    if not asked:
        raise ConfigError(f"{question.where}: nothing follows the context, expected an 'input': {how}")
    return (
        CaseTurn(_ids(context[:-1]), _ids(context[-1:]), 1, measured=False),
        CaseTurn(_ids(asked), None, tokens, answers=question.answers),
    )


def _cut(ids: list[int], longest: int | None) -> list[int]:
    if longest is None or len(ids) <= longest:
        return ids
    half = longest // 2
    return ids[: longest - half] + ids[len(ids) - half :]


def _ids(tokens: Sequence[int]) -> Ids:
    return np.array(tokens, np.int32)
