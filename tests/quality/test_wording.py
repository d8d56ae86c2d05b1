"""Where texts begin (BOS) and replies end (EOS, lines), and what judges see of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvarena.framework.execution.tokenizers import HfTokenizer
from kvarena.framework.quality.asking import Asked, draw_cases
from kvarena.framework.quality.cases import Case, CaseTurn
from kvarena.framework.quality.judging import Judge
from kvarena.framework.quality.passes import Passed
from kvarena.framework.quality.recording import Step
from kvarena.framework.quality.results import section
from kvarena.framework.quality.scoring import Answers
from kvarena.framework.quality.wording import opened, reply_length, reply_text
from kvarena.framework.schema import ConfigError
from kvarena.framework.task_knobs import QualityTask

BOS, EOS, STOP = 1, 2, 3


class Letters:
    """A token per character, with BOS and two tokens that end a reply."""

    starts, ends = (BOS,), (EOS, STOP)

    def encode(self, text: str) -> list[int]:
        return [BOS] * text.startswith("<s>") + [ord(letter) for letter in text.removeprefix("<s>")]

    continued = encode

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i) for i in ids if i > STOP)


LETTERS = Letters()
TEXT = Asked("letters", 2**16, LETTERS, 4096)


def ids(text: str) -> list[int]:
    return [{"^": EOS, "~": STOP}.get(letter, ord(letter)) for letter in text]


def row(**given: Any) -> dict[str, Any]:
    """As LongBench publishes them."""
    known = {"context": "Ahab is mad.", "input": "Who?", "answers": ["Ahab"], "length": 3, "language": "en", "_id": "0"}
    return {**known, "dataset": "hotpotqa", "all_classes": None, **given}


@pytest.fixture
def drawn(tmp_path: Path) -> Callable[..., list[Case]]:
    def draw(*rows: object, protocol: Any = "query_agnostic", positions: int = 4096, **knobs: Any) -> list[Case]:
        (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        task = QualityTask(files=(str(tmp_path / "questions.jsonl"),), protocol=protocol, **knobs)
        return draw_cases(task, 0, Asked("letters", 2**16, LETTERS, positions))

    return draw


def said(case: Case) -> str:
    return "|".join(LETTERS.decode([*turn.prompt.tolist(), *([] if turn.reply is None else turn.reply.tolist())])
                    for turn in case.turns)  # fmt: skip


# --- where a text begins ------------------------------------------------------------------------------------------


def test_a_conversation_begins_with_the_models_own_token_once(drawn: Callable[..., list[Case]]) -> None:
    assert opened(LETTERS, "ab") == [BOS, 97, 98]
    assert opened(LETTERS, "<s>ab") == [BOS, 97, 98]
    cases = draw_cases(QualityTask(tasks=("passkey", "multi_turn"), episodes=1, lengths=(1500,)), 0, TEXT)
    for case in [*cases, *drawn(row()), *drawn(row(), protocol="query_aware")]:
        whole = np.concatenate([turn.prompt for turn in case.turns]).tolist()
        assert (whole[0], whole.count(BOS)) == (BOS, 1)
        assert case.tokens <= 1500


def test_running_text_begins_with_it_and_stays_as_long(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x" * 700)
    task = QualityTask(tasks=("perplexity",), episodes=2, lengths=(300,), text=str(tmp_path / "text"))
    for case in draw_cases(task, 0, TEXT):
        assert (case.tokens, case.turns[0].prompt[0]) == (300, BOS)
        assert all(BOS not in turn.prompt[1:] for turn in case.turns)


class Backend:
    """What transformers gives for a tokenizer that puts BOS before a text, EOS behind, and a space before words."""

    eos_token_id = 7

    def encode(self, text: str, add_special_tokens: bool, verbose: bool) -> list[int]:
        found = [95] * (text[:1].isalpha()) + [ord(letter) for letter in text]
        return [5, *found, 7] if add_special_tokens else found

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(i) for i in ids if i > 7 or not skip_special_tokens)


def test_a_tokenizer_tells_its_convention() -> None:
    found = HfTokenizer(Backend(), ends=(9,))
    assert (found.starts, found.ends) == ((5,), (7, 9))
    assert found.encode("ab") == [95, 97, 98]
    assert found.continued("ab") == [97, 98]
    assert found.decode([5, 97, 7]) == "a"


# --- where a reply ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "one_line", "length", "text"),
    [
        ("Ahab", False, 4, "Ahab"),
        ("Ahab^ is", False, 5, "Ahab"),
        ("A~b^", False, 2, "A"),
        ("^Ahab", False, 1, ""),
        ("A\nB", False, 3, "A\nB"),
        ("A\nB", True, 2, "A"),
        ("\n\nA\nB", True, 4, "A"),
        ("A^\nB", True, 2, "A"),
    ],
)
def test_a_reply_ends(reply: str, one_line: bool, length: int, text: str) -> None:
    assert reply_length(LETTERS, ids(reply), one_line) == length
    assert reply_text(LETTERS, ids(reply), one_line) == text


def steps(choices: list[int]) -> list[Step]:
    """Each as sure of its own choice as it is of nothing else."""
    logits = torch.zeros(len(choices), 128)
    logits[torch.arange(len(choices)), torch.tensor(choices)] = 9.0
    return [Step(10 + i, one, None, None, None) for i, one in enumerate(logits)]


@pytest.mark.parametrize(("one_line", "measured"), [(False, 5), (True, 3)])
def test_what_follows_the_end_of_a_reply_counts_nowhere(one_line: bool, measured: int) -> None:
    """The full cache says "no", a line, EOS and then rubbish; the policy the answer, and rubbish after its EOS too."""
    full, policy, own = ids("no\n!^xyz"), ids("so\n!^abc"), ids("Ahab^no!")
    turn = CaseTurn(np.array([1]), None, 8, answers=Answers(("Ahab",), "f1", one_line=one_line))
    heard, whole = Passed(steps={(0, 0): steps(policy)}), Passed(steps={(0, 0): steps(full)})
    judge = Judge(8, LETTERS)
    case = Case("file", 0, 0, (turn,))
    free = Passed(chosen={(0, 0): own})
    (found,) = judge.turns([case], [[np.array(full)]], heard, whole, free)
    assert len(found.steps) == measured
    assert found.top1 == pytest.approx(1 - 1 / measured)
    assert (found.exact, found.full_exact) == (1.0, 0.0)
    assert section([found])["tasks"]["file"]["metric"] == "F1"
    free.chosen[0, 0] = ids("no^ Ahab")
    assert judge.turns([case], [[np.array(full)]], heard, whole, free)[0].exact == 0.0


# --- LongBench's rows ---------------------------------------------------------------------------------------------


def test_a_known_dataset_has_its_own_prompt_and_metric_and_length(drawn: Callable[..., list[Case]]) -> None:
    (case,) = drawn(row(), protocol="query_aware")
    (turn,) = case.turns
    assert (case.task, turn.tokens) == ("questions", 32)
    assert turn.answers == Answers(("Ahab",), "f1")
    asked = said(case)
    assert asked.startswith("Answer a question from the passages below.")
    assert "\nAhab is mad.\n" in asked
    assert asked.endswith("Question: Who?\nAnswer:")
    (whole,) = drawn(row())
    assert said(whole).replace("|", "") == asked
    assert said(whole).partition("|")[0].endswith("Ahab is mad.")


def test_metrics_differ_by_dataset(drawn: Callable[..., list[Case]]) -> None:
    few = {"dataset": "trec", "answers": ["Place"], "all_classes": ["Place", "Time"]}
    rows = [row(**few), row(dataset="gov_report", input=""), row(dataset="passage_count", answers=["3"], input=""),
            row(dataset="lcc", input=""), row(dataset="samsum_e"), row(dataset="other")]  # fmt: skip
    cases = drawn(*rows)
    told = [(case.task, case.turns[1].tokens, case.turns[1].answers) for case in cases]
    assert told == [
        ("questions:trec", 64, Answers(("Place",), "class", ("Place", "Time"), one_line=True)),
        ("questions:gov_report", 512, Answers(("Ahab",), "rouge_l")),
        ("questions:passage_count", 32, Answers(("3",), "number")),
        ("questions:lcc", 64, Answers(("Ahab",), "code")),
        ("questions:samsum", 128, Answers(("Ahab",), "rouge_l", one_line=True)),
        ("questions:others", 32, Answers(("Ahab",))),
    ]
    assert said(cases[-1]) == "Ahab is mad.|\n\nWho?\n"
    assert [case.turns[1].tokens for case in drawn(*rows, answer_tokens=5)] == [5] * 6


def test_prompts_may_be_the_benchmarks_own(drawn: Callable[..., list[Case]], tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps({"hotpotqa": "P {context} Q {input} A", "mine": "M {context} N"}))
    one, two = drawn(row(), row(dataset="mine"), prompts=str(tmp_path / "prompts.json"))
    assert said(one) == "P Ahab is mad.| Q Who? A"
    assert said(two) == "M Ahab is mad.| N"
    assert two.turns[1].answers == Answers(("Ahab",))
    (tmp_path / "prompts.json").write_text(json.dumps({"hotpotqa": "{input} {context}"}))
    with pytest.raises(ConfigError, match="the prompt of 'hotpotqa' must have {context}, and {input} only after it"):
        drawn(row(), prompts=str(tmp_path / "prompts.json"))


def test_rulers_rows_may_begin_the_answer(drawn: Callable[..., list[Case]]) -> None:
    (case,) = drawn({"input": "1 2 3?", "outputs": ["1"], "answer_prefix": " It is"}, protocol="query_aware")
    assert said(case) == "1 2 3? It is"


def test_a_long_context_loses_its_middle_only_when_told_to(drawn: Callable[..., list[Case]]) -> None:
    rows = row(context="a" * 500, dataset="none"), row(context="b" * 900, dataset="none", input="And who?")
    with pytest.raises(ConfigError, match=r"jsonl:1: 540 tokens .* has 400 positions; task.file_tokens=357 would"):
        drawn(*rows, positions=400)
    cases = drawn(*rows, positions=400, file_tokens=357)
    assert [case.tokens for case in cases] == [396, 400]
    assert cases[1].turns[0].prompt.tolist() == [BOS, *ids("b" * 355)]


BAD = [
    (row(dataset="dureader"), "jsonl:1: 'dataset' is 'dureader', which LongBench judges by Chinese words"),
    (row(dataset="trec"), "jsonl:1: 'all_classes' is null, expected a text, or a list"),
    (row(dataset="trec", all_classes=["B"]), "'answers' is \\[\"Ahab\"\\], expected some of 'all_classes'"),
    (row(dataset="passage_count"), "expected a number in each: 'dataset' is 'passage_count'"),
    (row(dataset=3), "'dataset' is 3, expected a text"),
]


@pytest.mark.parametrize(("bad", "words"), BAD)
def test_a_bad_row_names_its_line(drawn: Callable[..., list[Case]], bad: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        drawn(bad)


def test_the_names_of_files_are_those_of_tasks(tmp_path: Path) -> None:
    for folder, name in (("a", "x"), ("b", "x"), ("a", "perplexity")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.jsonl").write_text(json.dumps(row()))
    two = tuple(str(tmp_path / folder / "x.jsonl") for folder in "ab")
    with pytest.raises(ConfigError, match="have one name, x, expected different ones"):
        draw_cases(QualityTask(files=two), 0, TEXT)
    with pytest.raises(ConfigError, match="has the name of a task, perplexity"):
        draw_cases(QualityTask(files=(str(tmp_path / "a/perplexity.jsonl"),)), 0, TEXT)
