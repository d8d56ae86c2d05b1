"""Cases: the same tokens whatever the protocol, and what files and running text become."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from kvarena.framework.quality.asking import Asked, draw_cases
from kvarena.framework.quality.cases import Case, CaseWorkload, from_text
from kvarena.framework.quality.episodes import TASKS
from kvarena.framework.quality.files import read_questions
from kvarena.framework.quality.sentences import sentence_case
from kvarena.framework.schema import ConfigError
from kvarena.framework.task_knobs import QualityTask


class Letters:
    """A token per character; ``starts`` and ``ends`` are those of no model."""

    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 512 for letter in text]

    continued = encode

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


IDS = Asked("small", 256, None, 512)
TEXT = Asked("letters", 4096, Letters(), 4096)


def row(case: Case) -> list[int]:
    """All tokens of a conversation, but those that the model chooses itself."""
    parts = [part for turn in case.turns for part in (turn.prompt, turn.reply) if part is not None]
    return [int(token) for token in np.concatenate(parts)]


def test_episodes_are_drawn_by_task_and_length_and_seed() -> None:
    task = QualityTask(episodes=2, lengths=(64, 128))
    cases = draw_cases(task, 0, IDS)
    assert [case.task for case in cases[::4]] == list(TASKS)
    assert [case.length for case in cases[:4]] == [64, 64, 128, 128]
    assert [row(case) for case in cases] == [row(case) for case in draw_cases(task, 0, IDS)]
    assert row(cases[0]) != row(draw_cases(task, 1, IDS)[0])
    assert all(case.turns[0].before_cut == 1 and not case.turns[0].measured for case in cases)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("protocol", ["aware", "agnostic"])
def test_a_sentence_case_fits_and_holds_what_is_asked(task: str, protocol: str) -> None:
    case = sentence_case(task, 1500, 3, 0, Letters(), protocol, None)  # type: ignore[arg-type]
    assert 1300 < case.tokens <= 1500
    said = Letters().decode(row(case))
    context = Letters().decode(case.turns[0].prompt.tolist())
    answers = [turn.reply for turn in case.turns if turn.measured]
    assert len(answers) == (2 if task == "multi_turn" else 1)
    for answer in answers:
        assert answer is not None
        wanted = Letters().decode(answer.tolist()).strip()
        if task == "multi_hop":
            other, number = re.findall(r"\w+$|^\w+", wanted)
            assert f"The number of {other} is {number}." in context
        else:
            assert f"{wanted}." in context
    other = sentence_case(task, 1500, 3, 0, Letters(), "agnostic" if protocol == "aware" else "aware", None)
    assert said == Letters().decode(row(other))


def test_running_text_is_predicted_once_and_in_order() -> None:
    for length in (2, 17, 128, 129, 130, 400):
        ids = np.arange(length, dtype=np.int32)
        case = from_text(ids, 0)
        assert row(case) == ids.tolist()
        assert all(len(turn.prompt) and turn.tokens for turn in case.turns)
    with pytest.raises(ValueError, match="1 tokens has none to predict"):
        from_text(np.zeros(1, np.int32), 0)


def test_stretches_of_a_text_do_not_overlap(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("".join(chr(33 + i % 90) for i in range(1000)))
    task = QualityTask(tasks=("perplexity",), episodes=7, lengths=(130,), text=str(tmp_path / "text"))
    starts = [int(row(case)[0]) for case in draw_cases(task, 0, TEXT)]
    assert len(set(starts)) == 7
    with pytest.raises(ConfigError, match=r"episodes is 8, and .* has 1000 tokens, 7 times 130"):
        draw_cases(QualityTask(tasks=("perplexity",), episodes=8, lengths=(130,), text=str(tmp_path / "text")), 0, TEXT)


def test_a_workload_follows_the_replies_or_leaves_the_model_free() -> None:
    (case,) = draw_cases(QualityTask(tasks=("passkey",), episodes=1, lengths=(64,)), 0, IDS)
    (whole,) = CaseWorkload([case]).conversations()
    assert [turn.output_tokens for turn in whole.turns] == [1, 4]
    assert whole.turns[1].reply_ids is case.turns[1].reply
    (free,) = CaseWorkload([case], [[case.turns[0].reply, None]]).conversations()
    assert free.turns[1].reply_ids is None
    assert free.turns[1].output_tokens == 4


LONGBENCH = {"context": "Anna is nine. " * 20, "input": "How old is Anna?", "answers": ["nine", "9"], "length": 60}
RULER = {"index": 0, "input": "What are the numbers? 12, 34", "outputs": ["12", "34"]}


def files(tmp_path: Path, *rows: object) -> str:
    path = tmp_path / "narrative.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_both_kinds_of_files_are_read(tmp_path: Path) -> None:
    found = read_questions(Path(files(tmp_path, LONGBENCH, RULER)))
    assert [(q.answers.texts, q.answers.metric) for q in found] == [(("nine", "9"), "found"), (("12", "34"), "every")]
    task = QualityTask(files=(files(tmp_path, LONGBENCH),), answer_tokens=5, file_tokens=100)
    (case,) = draw_cases(task, 0, TEXT)
    assert (case.task, [turn.tokens for turn in case.turns]) == ("narrative", [1, 5])
    assert len(case.turns[0].prompt) == 99
    said = Letters().decode(row(case))
    assert said.startswith("Anna is nine. Anna")
    assert said.endswith("\n\nHow old is Anna?\n")
    assert case.turns[1].reply is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"context": "a", "input": "b"}, "narrative.jsonl:1: 'answers' is missing"),
        ({"context": "a", "answers": ["b"]}, "narrative.jsonl:1: 'input' is missing"),
        ({"input": "a", "outputs": []}, "'outputs' is \\[\\], expected a text, or a list of texts"),
        ({"input": " ", "outputs": ["a"]}, "'input' is \" \", expected a text that is not empty"),
        ({"input": "a", "outputs": ["b"]}, "'context' has 0 tokens, expected at least 2: protocol=query_agnostic"),
    ],
)
def test_a_bad_file_names_its_line(tmp_path: Path, row: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        draw_cases(QualityTask(files=(files(tmp_path, row),)), 0, TEXT)


@pytest.mark.parametrize(
    ("task", "asked", "words"),
    [
        (QualityTask(tasks=("passkey",)), Asked("toy", 97, None, None), "model=toy has 97 token ids, expected at"),
        (QualityTask(tasks=("perplexity",)), IDS, "'perplexity', which needs text, and model=small has no tokenizer"),
        (QualityTask(tasks=("multi_hop",), lengths=(64,)), TEXT, "lengths has 64, too short for multi_hop"),
        (QualityTask(tasks=("perplexity",), text="/no/such"), TEXT, "/no/such does not exist"),
        (QualityTask(files=("/no/such",)), TEXT, "/no/such does not exist"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_be_asked_is_refused(task: QualityTask, asked: Asked, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        draw_cases(task, 0, asked)
