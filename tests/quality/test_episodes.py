"""Retrieval episodes: drawn from a seed, unambiguous, answerable from their evidence alone, in both protocols."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from kvarena.framework.quality.episodes import PROTOCOLS, SHORTEST, TASKS, Episode, episode, episodes
from kvarena.framework.quality.vocabulary import (
    BEGIN,
    KEYS,
    MARKERS,
    NOISE,
    NOTED,
    QUERY,
    SEPARATOR,
    VALUES,
    VOCAB_SIZE,
    spell,
    word,
)

LENGTHS = (SHORTEST, 47, 128, 512, 1024)
ALL = [(task, length) for task in TASKS for length in LENGTHS]


def drawn(task: str, length: int, count: int = 12) -> list[Episode]:
    return list(episodes(task, length, count, seed=3))


def test_the_ranges_of_tokens_share_nothing_and_leave_nothing_out() -> None:
    held = Counter(token for ids in (MARKERS, NOISE, KEYS, VALUES) for token in ids)
    assert held == Counter(range(VOCAB_SIZE))
    assert {BEGIN, SEPARATOR, NOTED, QUERY} < set(MARKERS)


def test_tokens_have_readable_names() -> None:
    assert spell([BEGIN, NOISE[7], KEYS[0], VALUES[95], QUERY]) == "begin n7 k0 v95 query"
    assert len({word(token) for token in range(VOCAB_SIZE)}) == VOCAB_SIZE
    with pytest.raises(ValueError, match="token is 256, expected 0 to 255"):
        word(256)


@pytest.mark.parametrize(("task", "length"), ALL)
def test_an_episode_has_the_length_asked_for(task: str, length: int) -> None:
    for one in drawn(task, length):
        assert len(one.tokens("agnostic")) == length
        assert len(one.tokens("aware")) == length - 1  # the context gets no reply of its own


@pytest.mark.parametrize(("task", "length"), ALL)
def test_an_answer_can_be_read_off_its_evidence(task: str, length: int) -> None:
    """Each token of an answer follows, in the evidence, the token that came before it in question and answer; nothing
    else of the context is needed."""
    for one in drawn(task, length):
        for asked in one.questions:
            follows = {(one.context[a], one.context[a + 1]) for a in asked.evidence if a + 1 in asked.evidence}
            line = [asked.prompt[-1], *asked.answer]
            assert set(itertools.pairwise(line)) <= follows
            assert len(set(asked.evidence)) == len(asked.evidence)


@pytest.mark.parametrize(("task", "length"), ALL)
def test_nothing_in_the_context_gives_another_answer(task: str, length: int) -> None:
    for one in drawn(task, length):
        seen = Counter(token for token in one.context if token in VALUES)
        assert not seen or max(seen.values()) == 1
        pairs = {(a, b) for a, b in zip(one.context, one.context[1:], strict=False) if a in KEYS and b not in NOISE}
        assert len({key for key, _ in pairs}) == len(pairs)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_episode_and_another_seed_another(task: str) -> None:
    assert episode(task, 96, 5) == episode(task, 96, 5)
    assert len({episode(task, 96, seed).context for seed in range(50)}) == 50


@pytest.mark.parametrize("task", TASKS)
def test_training_and_held_out_episodes_of_all_seeds_differ(task: str) -> None:
    train = {episode(task, 64, seed, split="train").context for seed in range(200)}
    held_out = {episode(task, 64, seed).context for seed in range(200)}
    assert len(train) == len(held_out) == 200
    assert not train & held_out


def test_the_protocols_say_when_the_question_is_known() -> None:
    one = episode("multi_turn", 128, 0)
    first, second = one.questions
    aware, agnostic = (one.turns(protocol) for protocol in PROTOCOLS)
    assert [turn.prompt for turn in aware] == [one.context + first.prompt, second.prompt]
    assert [turn.prompt for turn in agnostic] == [one.context, first.prompt, second.prompt]
    assert [turn.asked for turn in agnostic] == [False, True, True]
    assert agnostic[0].answer == (NOTED,)
    assert all(turn.evidence == asked.evidence for turn, asked in zip(aware, one.questions, strict=True))
    assert not set(first.evidence) & set(second.evidence)


def test_evidence_is_spread_over_the_whole_context() -> None:
    places = [one.questions[0].evidence[0] for one in episodes("passkey", 256, 200, seed=1)]
    assert min(places) < 25
    assert max(places) > 225
    assert 100 < sum(places) / 200 < 150


def test_more_questions_can_be_asked_than_one() -> None:
    one = episode("associative", 256, 0, questions=5)
    assert len({asked.prompt for asked in one.questions}) == 5
    assert len(one.tokens("agnostic")) == 256
    assert len(episode("passkey", 64, 0, questions=4).questions) == 1  # there is only one key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "guess"}, "task is 'guess', expected one of passkey, multi_key"),
        ({"length": 31}, "length is 31, expected at least 32"),
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"split": "test"}, "split is 'test', expected one of train, held_out"),
        ({"questions": 0}, "questions is 0, expected at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    given = {"task": "multi_key", "length": 64, "seed": 0} | arguments
    with pytest.raises(ValueError, match=message):
        episode(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
def test_all_questions_fit_into_every_length(task: str) -> None:
    for length in range(SHORTEST, 700, 7):
        assert len(episode(task, length, 0, questions=99).tokens("agnostic")) == length


def test_an_unknown_protocol_and_too_many_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="protocol is 'both', expected one of aware, agnostic"):
        episode("copy", 64, 0).turns("both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count is 1000001"):
        episodes("copy", 64, 1_000_001, 0)
