"""Recorded chats: the forms they come in, and contexts that are the text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvarena.framework.workloads import make_workload
from kvarena.framework.workloads.sharegpt import _longest_prefix
from kvarena.framework.workloads.tokenizer import ByteTokenizer


def said(*texts, first="human", **keys):
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    return {"conversations": [{"from": speakers[i % 2], "value": t} for i, t in enumerate(texts)], **keys}


def texts(conversation):
    """Prompts and replies, byte for byte."""
    pairs = [(t.prompt_ids, t.reply_ids) for t in conversation.turns]
    return [tuple(None if ids is None else bytes(ids.tolist()).decode() for ids in pair) for pair in pairs]


def test_sharegpt_turns_are_prompts_and_forced_replies(from_lines):
    workload = from_lines("sharegpt", [said("Hi", "Hello", "Bye", "Ciao", id="x1"), said("q", "a")])
    first, second = workload.conversations()
    assert texts(first) == [("Hi", "Hello"), ("Bye", "Ciao")] and first.label == "x1"
    assert [(t.prompt_tokens, t.output_tokens) for t in first.turns] == [(2, 5), (3, 4)]
    assert texts(second) == [("q", "a")]
    assert first.start_s == second.start_s == 0
    assert first.turns[0].think_s == 0 and first.turns[1].think_s > 0 and first.turns[1].arrival_s is None
    assert not workload.symbolic and len(workload) == 2


def test_an_array_is_taken_as_lines_are(tmp_path, from_lines):
    rows = [said("Hi", "Hello"), said("q", "a", "r", "b")]
    as_lines = [texts(c) for c in from_lines("sharegpt", rows).conversations()]
    path = tmp_path / "chats.json"
    path.write_text(json.dumps(rows, indent=2))
    assert [texts(c) for c in from_lines("sharegpt", [], path=str(path)).conversations()] == as_lines


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (said("skipped", "Hi", "Hello", first="gpt"), [("Hi", "Hello")]),
        (said("Hi", "Hello", "unanswered"), [("Hi", "Hello")]),
        (said("Hi", "", "there", "Yes"), [("Hithere", "Yes")]),
        (
            {"messages": [{"role": r, "content": t} for r, t in zip("suuaa", "Sabcd", strict=True)]},
            [("Sab", "cd")],
        ),
    ],
)
def test_messages_become_exchanges(from_lines, row, expected):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    for message in row.get("messages", ()):
        message["role"] = roles[message["role"]]
    assert [texts(c) for c in from_lines("sharegpt", [row, said("q", "a")]).conversations()] == [expected, [("q", "a")]]


def test_conversations_without_an_exchange_are_left_out(from_lines):
    workload = from_lines("sharegpt", [said("alone"), said("Hi", "Hello"), said()])
    assert [(c.id, texts(c)) for c in workload.conversations()] == [(0, [("Hi", "Hello")])]
    with pytest.raises(ValueError, match="no conversation is left"):
        from_lines("sharegpt", [said("alone")])


def test_flat_requests_are_grouped_by_growing_prefix(from_lines):
    a1 = "What is 1?"
    a2 = a1 + "\n" + "One.\nReally one." + "\nAnd two?"
    a3 = a2 + "\nTwo" + "\nAnd three?"
    b1 = "What"
    b2 = b1 + "\nWhat what?\nNo"
    rows = [{"input": t, "output_length": n} for t, n in [(a1, 17), (b1, 11), (a2, 4), (b2, 5), (a3, 6)]]
    first, second = from_lines("sharegpt", rows).conversations()
    assert texts(first) == [(a1, "\nOne.\nReally one."), ("\nAnd two?", "\nTwo"), ("\nAnd three?", None)]
    assert [t.output_tokens for t in first.turns] == [17, 4, 6]
    assert texts(second) == [(b1, "\nWhat what?"), ("\nNo", None)]
    assert [t.output_tokens for t in second.turns] == [11, 5]


def test_a_forked_flat_conversation_starts_anew(from_lines):
    rows = [{"input": t, "output_length": 2} for t in ("ab", "ab\ncd\nef", "ab\nxy\nz")]
    assert [texts(c)[0][0] for c in from_lines("sharegpt", rows).conversations()] == ["ab", "ab\nxy\nz"]


@given(st.lists(st.text("ab", min_size=1, max_size=5), max_size=20), st.text("ab", min_size=1, max_size=7))
def test_the_longest_proper_prefix_is_found(texts, text):
    expected = max((t for t in texts if text.startswith(t) and t != text), key=len, default=None)
    assert _longest_prefix(sorted(set(texts)), text) == expected


def test_a_rate_spreads_the_starts(from_lines):
    lines = [said("a", "b", "c", "d")] * 50
    starts = [c.start_s for c in from_lines("sharegpt", lines, rate=2.0).conversations()]
    assert starts == sorted(starts) and starts[-1] == pytest.approx(25, rel=0.5)
    quick = from_lines("sharegpt", lines, think_time_s=None).conversations()
    assert {t.think_s for c in quick for t in c.turns} == {0.0}


def test_a_data_set_comes_through_datasets(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(said(f"q{i}", f"a{i}")) for i in range(5)))
    knobs = {"dataset": str(tmp_path), "limit": 3}
    workload = make_workload("sharegpt", knobs, 0, 256, ByteTokenizer(256), False)
    assert [texts(c) for c in workload.conversations()] == [[(f"q{i}", f"a{i}")] for i in range(3)]
    with pytest.raises(ValueError, match=r"workload.dataset: .* \(split nope\) cannot be loaded") as error:
        make_workload("sharegpt", {**knobs, "split": "nope"}, 0, 256, None, False)
    assert "\n" not in str(error.value)


def test_path_and_dataset_exclude_each_other():
    with pytest.raises(ValueError, match=r"both path \(a\) and dataset \(b\) are set"):
        make_workload("sharegpt", {"path": "a", "dataset": "b"}, 0, 256, None, False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "?"}, "data.jsonl:2: 'conversations' is missing, expected a list of messages"),
        ({"conversations": 3}, "data.jsonl:2: 'conversations' is 3, expected a list of objects"),
        (
            {"conversations": [{"from": "alien", "value": ""}]},
            r"\[0\]: 'from' is \"alien\", expected one of",
        ),
        ({"conversations": [{"value": "x"}]}, r"conversations\[0\]: 'from' is missing"),
        ({"conversations": [{"from": "human"}]}, r"conversations\[0\]: 'value' is missing, expected a text"),
        ("nonsense", 'data.jsonl:2: found "nonsense", expected a JSON object'),
    ],
)
def test_what_is_wrong_is_said_in_one_line(from_lines, line, message):
    with pytest.raises(ValueError, match=message) as error:
        from_lines("sharegpt", [said("Hi", "Hello"), line])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"input": "x"}, "data.jsonl:2: 'output_length' is missing, expected a whole number >= 1"),
        ({"input": "", "output_length": 1}, "data.jsonl:2: 'input' is \"\", expected a text that is not empty"),
        ({"output_length": 1}, "data.jsonl:2: 'input' is missing, expected a text"),
    ],
)
def test_flat_requests_that_are_wrong(from_lines, line, message):
    with pytest.raises(ValueError, match=message):
        from_lines("sharegpt", [{"input": "a", "output_length": 1}, line])


def test_the_public_chats(data, from_lines):
    path = data / "sharegpt_text" / "run.json"
    rows = json.loads(path.read_text())
    conversations = list(from_lines("sharegpt", [], path=str(path)).conversations())
    assert (len(conversations), sum(len(c.turns) for c in conversations)) == (55, 252)
    inputs, lasts = [], {row["output_length"] for row in rows}
    for conversation in conversations:
        context = ""
        for prompt, reply in texts(conversation):
            context += prompt
            inputs.append(context)
            context += reply or ""
        assert conversation.turns[-1].reply_ids is None and conversation.turns[-1].output_tokens in lasts
    # histories that were taken out come back exactly; only the border of reply and prompt is a guess
    assert sorted(inputs) == sorted(row["input"] for row in rows)
