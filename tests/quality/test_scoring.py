"""Metrics of replies: values by hand, and those that LongBench's own packages gave (rouge 1.0.1, fuzzywuzzy 0.18)."""

from __future__ import annotations

import pytest

from kvarena.framework.quality.scoring import Answers, code_similarity, right_class, right_numbers, rouge_l, word_f1

CLASSES = ("Definition of something", "Definition", "Other location")


def test_an_answer_is_found_or_a_share_of_them() -> None:
    nine = Answers(("nine", "9"))
    assert [nine.worth(said) for said in ("She is Nine.", "a 9!", "ninety")] == [1.0, 1.0, 0.0]
    assert Answers(("12", "34"), "every").worth("12 and 35") == 0.5
    assert Answers(("?!",)).worth("so ?!") == 1.0  # nothing is left of it without punctuation


def test_the_f1_of_words_takes_the_best_answer() -> None:
    assert word_f1("the red car", "A red bus") == pytest.approx(0.5)
    assert word_f1("red red car", "red") == pytest.approx(0.5)
    assert word_f1("", "nine") == 0.0
    assert Answers(("blue", "A red bus"), "f1").worth("the red car") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("reply", "answer", "value"),
    [
        ("the cat sat on the mat. a dog ran.", "a cat sat on a red mat. the dog saw it.", 0.7777777),
        ("b a", "a b", 0.5),
        ("a b c", "a b c.", 1.0),
        ("a", "b", 0.0),
        ("", "b", 0.0),
    ],
)
def test_rouge_l_is_that_of_the_package(reply: str, answer: str, value: float) -> None:
    assert rouge_l(reply, answer) == pytest.approx(value, abs=1e-6)


def test_a_class_shares_with_others_that_are_named() -> None:
    right = CLASSES[0]
    assert right_class(f"It is {right}", right, CLASSES) == 1.0  # "Definition" is a part of its name
    assert right_class(f"{right} or Other location", right, CLASSES) == 0.5
    assert right_class("Definition", right, CLASSES) == 0.0
    assert right_class("", right, CLASSES) == 0.0


def test_numbers_are_counted() -> None:
    assert right_numbers("Paragraph 3, or 13", "Paragraph 3") == 0.5
    assert right_numbers("段落3", "段落3") == 1.0
    assert right_numbers("none", "3") == 0.0


def test_code_is_the_first_line_that_is_no_comment() -> None:
    assert code_similarity("\n# so\n```\nreturn x\nreturn y", "return x") == 1.0
    assert code_similarity("return xy", "return x") == 0.94  # 16 / 17
    assert code_similarity("# only", "return x") == 0.0
