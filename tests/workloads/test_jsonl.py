"""Our own format: every key, the timing knobs, and what is said about files that are wrong."""

from __future__ import annotations

import pytest

from kvarena.framework.workloads import IdLog

TURN = {"prompt": "hi", "output_tokens": 3}


def conversation(*turns, **keys):
    return {"turns": list(turns), **keys}


def test_every_key_is_read(from_lines):
    workload = from_lines(
        "jsonl",
        [
            conversation(TURN, conversation="late", start_s=5),
            "",
            conversation(
                {"prompt_ids": [1, 2, 3], "reply_ids": [4, 5]},
                {"prompt": "é", "reply": "ok", "output_tokens": 2, "think_s": 1.5},
                {"prompt": "x", "output_tokens": 9, "arrival_s": 8},
                conversation=7,
                start_s=0.25,
            ),
        ],
    )
    first, last = workload.conversations()
    assert (first.id, first.label, first.start_s, last.id, last.label, last.start_s) == (0, "7", 0.25, 1, "late", 5)
    a, b, c = first.turns
    assert (a.prompt_ids.tolist(), a.reply_ids.tolist(), a.prompt_tokens, a.output_tokens) == ([1, 2, 3], [4, 5], 3, 2)
    assert (b.prompt_ids.tolist(), b.reply_ids.tolist(), b.think_s) == ([0xC3, 0xA9], [111, 107], 1.5)
    assert (c.output_tokens, c.reply_ids, c.arrival_s) == (9, None, 8)
    assert not workload.symbolic and (workload.name, len(workload)) == ("jsonl", 2)


def test_logs_take_unknown_replies_only_where_no_model_runs(from_lines):
    for symbolic in (True, False):
        workload = from_lines("jsonl", [conversation(TURN)], symbolic=symbolic)
        log = workload.new_log(next(iter(workload.conversations())))
        assert isinstance(log, IdLog) and len(log) == 0
        if symbolic:
            log.extend(3)
        else:
            with pytest.raises(ValueError, match="unknown"):
                log.extend(3)


def test_limit_and_max_context(from_lines):
    lines = [conversation({"prompt": "x" * n, "output_tokens": 2}, TURN) for n in (1, 50, 4, 1)]
    assert [len(c.turns) for c in from_lines("jsonl", lines).conversations()] == [2, 2, 2, 2]
    cut = list(from_lines("jsonl", lines, max_context=8).conversations())  # 1 + 2 + 2 + 3 = 8 fit, 4 + 2 + ... do not
    assert [(c.id, c.label, len(c.turns)) for c in cut] == [(0, "0", 2), (1, "2", 1), (2, "3", 2)]
    assert [c.label for c in from_lines("jsonl", lines, max_context=8, limit=2).conversations()] == ["0", "2"]
    with pytest.raises(ValueError, match="no conversation is left.*max_context is 2"):
        from_lines("jsonl", lines, max_context=2)


def test_times_are_the_files_unless_knobs_replace_them(from_lines):
    timed = [{**TURN, "arrival_s": s} for s in (3, 4, 8)]
    lines = [conversation(*timed), conversation(TURN, {**TURN, "think_s": 2}, start_s=6)]

    def times(**knobs):
        found = from_lines("jsonl", lines, **knobs).conversations()
        return [(c.start_s, [t.arrival_s for t in c.turns], [t.think_s for t in c.turns]) for c in found]

    assert times() == [(3, [3, 4, 8], [0, 0, 0]), (6, [None, None], [0, 2])]
    assert times(time_scale=2) == [(6, [6, 8, 16], [0, 0, 0]), (12, [None, None], [0, 4])]
    (start, arrivals, _), (later, _, thinks) = times(rate=0.5)
    assert arrivals == pytest.approx([start, start + 1, start + 5]) and later > start and thinks == [0, 2]
    (start, arrivals, thinks), _ = times(think_time_s=10)
    assert start == 3 and arrivals == [None] * 3 and thinks[0] == 0 and min(thinks[1:]) > 0
    assert times(think_time_s=20)[0][2] == pytest.approx([2 * t for t in thinks])
    assert times(think_time_s=10, time_scale=3)[0][2] == pytest.approx([3 * t for t in thinks])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"data.jsonl:2: found \"\{\", expected a JSON object"),
        ("[1]", r"data.jsonl:2: found \[1\], expected an object"),
        ({"turns": []}, r"data.jsonl:2: 'turns' is \[\], expected at least one turn"),
        ({}, "data.jsonl:2: 'turns' is missing, expected a list of objects"),
        (conversation(3), r"data.jsonl:2: turns\[0\]: found 3, expected an object"),
        (conversation(TURN, start_s="soon"), "data.jsonl:2: 'start_s' is \"soon\", expected a number >= 0"),
        ('{"start_s": NaN, "turns": [{"prompt": "a", "output_tokens": 1}]}', "'start_s' is NaN, expected a number"),
        (conversation(TURN, start=1), "data.jsonl:2: unknown key 'start'.*did you mean 'start_s'"),
        (conversation({"prompt": "a"}), r"turns\[0\]: 'output_tokens' is missing, expected a whole number >= 1"),
        (conversation({**TURN, "output_tokens": 0}), "'output_tokens' is 0, expected a whole number >= 1"),
        (conversation({**TURN, "output_tokens": True}), "'output_tokens' is true, expected a whole number"),
        (conversation({"prompt": "", "output_tokens": 1}), "'prompt' is \"\", expected at least one token"),
        (conversation({"prompt": 5, "output_tokens": 1}), "'prompt' is 5, expected a text"),
        (conversation({"output_tokens": 1}), "'prompt' is missing, expected at least one token"),
        (conversation({"prompt_ids": [1, -1], "output_tokens": 1}), r"'prompt_ids' holds -1, expected whole numbers 0"),
        (conversation({"prompt_ids": [1.5], "output_tokens": 1}), r"'prompt_ids' is \[1.5\], expected a list of whole"),
        (conversation({**TURN, "prompt_ids": [1]}), "both 'prompt' and 'prompt_ids' are given"),
        (conversation({"prompt": "a", "reply_ids": []}), r"'reply_ids' is \[\], expected at least one token"),
        (conversation({**TURN, "reply": "four"}), "'output_tokens' is 3, expected 4, the tokens of the reply"),
        (conversation({**TURN, "arrival_s": 3}, {**TURN, "arrival_s": 2}), "'arrival_s' is 2.0 after 3.0"),
        (conversation(TURN, conversation="first"), "'first' was at .*data.jsonl:1 already"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(from_lines, line, message):
    with pytest.raises(ValueError, match=message) as error:
        from_lines("jsonl", [conversation(TURN, conversation="first"), line])
    assert "\n" not in str(error.value)


def test_ids_must_be_the_models(from_lines):
    line = conversation({"prompt_ids": [300], "output_tokens": 1})
    assert len(from_lines("jsonl", [line])) == 1  # nothing looks them up in a simulation
    with pytest.raises(ValueError, match=r"'prompt_ids' holds 300, expected whole numbers 0\.\.255"):
        from_lines("jsonl", [line], symbolic=False)
    with pytest.raises(ValueError, match="the tokenizer gives the id 105, but the model has 100 ids"):
        from_lines("jsonl", [conversation(TURN)], symbolic=False, vocab_size=100)


def test_files_that_are_no_text(tmp_path, from_lines):
    with pytest.raises(ValueError, match="the file is empty"):
        from_lines("jsonl", [" ", ""])
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"bad.jsonl: byte 7 is not UTF-8"):
        from_lines("jsonl", [], path=str(bad))


def test_a_whole_array_is_taken_too(from_lines):
    lines = ["[", '{"turns": [{"prompt": "a", "output_tokens": 1}]},', '{"turns": [{"prompt": "b"}]}', "]"]
    with pytest.raises(ValueError, match=r"data.jsonl:3: turns\[0\]: 'output_tokens' is missing"):
        from_lines("jsonl", lines)
    assert len(from_lines("jsonl", [*lines[:1], lines[1].rstrip(","), "]"])) == 1
    with pytest.raises(ValueError, match=r"data.jsonl:3: found .*, expected ',' or '\]'"):
        from_lines("jsonl", [*lines[:1], lines[1].rstrip(","), lines[2], "]"])
    with pytest.raises(ValueError, match=r"data.jsonl:2: found the end of the file, expected ','"):
        from_lines("jsonl", [*lines[:1], lines[1].rstrip(",")])
