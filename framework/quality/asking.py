"""Which cases a model is asked: by the task's knobs, its vocabulary and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from ..schema import ConfigError
from ..task_knobs import QUALITY_TASKS, QualityTask
from ..workloads.tokenizer import Tokenizer
from .cases import Case, Ids, from_episode, from_text
from .episodes import TASKS, Protocol, episode
from .files import Sizes, file_cases, read_questions
from .longbench import read_prompts
from .sentences import sentence_case
from .text import EXCERPT
from .vocabulary import VOCAB_SIZE
from .wording import TextTokenizer

_OF_A_SEED = 10**6  # episodes
_BYTES = 512  # a tokenizer of fewer ids knows bytes, not words


@dataclass(frozen=True, slots=True)
class Asked:
    """Who is asked: the model's name, how many token ids it has, its tokenizer, and how many positions."""

    model: str
    vocab_size: int
    tokenizer: Tokenizer | None
    max_tokens: int | None

    @property
    def text(self) -> TextTokenizer | None:
        """Its tokenizer, if that goes both ways."""
        return cast(TextTokenizer, self.tokenizer) if hasattr(self.tokenizer, "decode") else None


def draw_cases(task: QualityTask, seed: int, asked: Asked) -> list[Case]:
    """All cases of a run; equal arguments give equal cases.

    Raises
    ------
    ConfigError
        If the model cannot be asked, or a file is missing or malformed.
    """
    protocol: Protocol = "aware" if task.protocol == "query_aware" else "agnostic"
    chosen = _tasks(task, asked)
    cases = [
        case
        for name in chosen
        for length in task.lengths
        for case in (
            _texts(task, length, seed, asked)
            if name == "perplexity"
            else _retrieval(task, name, length, seed, asked, protocol)
        )
    ]
    return [*cases, *_from_files(task, asked, protocol)]


def _tasks(task: QualityTask, asked: Asked) -> Sequence[str]:
    if task.tasks is not None:
        return task.tasks
    if task.files:
        return ()
    if asked.text is None:
        return TASKS
    return ("perplexity",) if asked.vocab_size <= _BYTES else (*TASKS, "perplexity")


def _retrieval(
    task: QualityTask, name: str, length: int, seed: int, asked: Asked, protocol: Protocol
) -> Iterator[Case]:
    try:
        if asked.text is not None:
            for number in range(task.episodes):
                yield sentence_case(name, length, number, seed, asked.text, protocol, task.questions)
            return
        if asked.vocab_size < VOCAB_SIZE:
            found = f"model={asked.model} has {asked.vocab_size} token ids"
            raise ConfigError(f"task={name}: {found}, expected at least {VOCAB_SIZE}, or a tokenizer")
        for number in range(task.episodes):
            one = episode(name, length, seed * _OF_A_SEED + number, questions=task.questions)
            yield from_episode(one, length, number, protocol)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"task.lengths has {length}, too short for {name}: {error}") from error


def _texts(task: QualityTask, length: int, seed: int, asked: Asked) -> Iterator[Case]:
    """Stretches of the text that do not overlap, drawn by the seed."""
    if asked.tokenizer is None:
        raise ConfigError(f"task.tasks has 'perplexity', which needs text, and model={asked.model} has no tokenizer")
    ids = np.array(asked.tokenizer.encode(_text(task)), np.int32)
    room = len(ids) // length
    if room < task.episodes:
        where = task.text or "the held-out excerpt"
        found = f"{where} has {len(ids)} tokens, {room} times {length}"
        raise ConfigError(f"task.episodes is {task.episodes}, and {found}: choose fewer episodes, or shorter ones")
    _check_ids(ids, asked, "the tokenizer gives")
    for number, at in enumerate(np.random.default_rng(seed).permutation(room)[: task.episodes]):
        yield from_text(ids[at * length : (at + 1) * length], number, asked.text.starts if asked.text else ())


def _text(task: QualityTask) -> str:
    path = EXCERPT if task.text is None else Path(task.text).expanduser()
    if not path.is_file():
        raise ConfigError(f"task.text: {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    return path.read_text(encoding="utf-8", errors="replace")


def _from_files(task: QualityTask, asked: Asked, protocol: Protocol) -> Iterator[Case]:
    paths = [Path(file).expanduser() for file in task.files]
    prompts = {} if task.prompts is None else read_prompts(Path(task.prompts).expanduser())
    _check_names(paths)
    for path in paths:
        questions = read_questions(path, prompts)
        if asked.text is None:
            raise ConfigError(f"task.files: {path} holds text, and model={asked.model} has no tokenizer")
        sizes = Sizes(task.answer_tokens, task.file_tokens, asked.max_tokens)
        yield from file_cases(questions, path.stem, asked.text, protocol, sizes)


def _check_names(paths: Sequence[Path]) -> None:
    """The name of a file is that of its task."""
    for i, path in enumerate(paths):
        if path.stem in QUALITY_TASKS:
            raise ConfigError(f"task.files: {path} has the name of a task, {path.stem}: call the file by another")
        for other in paths[:i]:
            if other.stem == path.stem:
                raise ConfigError(f"task.files: {other} and {path} have one name, {path.stem}, expected different ones")


def _check_ids(ids: Ids, asked: Asked, what: str) -> None:
    if len(ids) and int(ids.max()) >= asked.vocab_size:
        raise ConfigError(f"{what} the id {ids.max()}, but model={asked.model} has {asked.vocab_size} ids")
