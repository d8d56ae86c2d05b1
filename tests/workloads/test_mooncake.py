"""Mooncake's format: inferred conversations, block identity, and the public one-hour trace."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from kvarena.framework.workloads import BlockLog, PrefixIndex


def request(timestamp, input_length, output_length, hash_ids):
    return {
        "timestamp": timestamp,
        "input_length": input_length,
        "output_length": output_length,
        "hash_ids": hash_ids,
    }


# request 0 goes on in 2 (shorter than its input + output, so only the input is history) and in 3; 1 starts anew;
# 4 shares two blocks with 3, but not all its full blocks
TRACE = [
    request(0, 1600, 50, [0, 1, 2, 3]),
    request(1000, 700, 10, [0, 9]),
    request(2000, 1630, 40, [0, 1, 2, 4]),
    request(3000, 2000, 7, [0, 1, 2, 5]),
    request(3500, 1100, 7, [0, 1, 8]),
]


def test_conversations_are_inferred_from_blocks(from_lines):
    workload = from_lines("mooncake", TRACE)
    conversations = list(workload.conversations())
    assert [[t.log.request for t in c.turns] for c in conversations] == [[0, 2, 3], [1], [4]]
    assert [(t.history_tokens, t.prompt_tokens) for t in conversations[0].turns] == [(0, 1600), (1600, 30), (1670, 330)]
    assert [t.arrival_s for t in conversations[0].turns] == [0, 2, 3]
    assert [t.output_tokens for t in conversations[0].turns] == [50, 40, 7]
    assert [(c.id, c.start_s) for c in conversations] == [(0, 0), (1, 1), (2, 3.5)]
    assert workload.symbolic and workload.name == "mooncake" and not workload.barrier


def test_a_common_prompt_makes_no_conversation(from_lines):
    shared = [request(i, 1024 + i, 1, [0, 1, 10 + i]) for i in range(1, 42)]
    assert len(from_lines("mooncake", shared)) == 41  # 41 requests hold block 1
    assert len(from_lines("mooncake", shared[:-1])) == 1


def test_the_first_block_alone_makes_no_conversation(from_lines):
    assert len(from_lines("mooncake", [request(0, 700, 1, [0, 9]), request(1, 800, 1, [0, 7])])) == 2


def test_a_prompt_is_never_empty(from_lines):
    workload = from_lines("mooncake", [request(0, 600, 40, [0, 9]), request(1, 640, 1, [0, 9])])
    assert len(workload) == 1  # the input is longer by just the reply: there would be nothing to ask
    assert [t.prompt_tokens for c in workload.conversations() for t in c.turns] == [600, 40]


def test_logs_are_new_at_each_iteration(from_lines):
    workload = from_lines("mooncake", TRACE)
    first = next(iter(workload.conversations())).turns[0].log
    first.extend(50)
    again = next(iter(workload.conversations())).turns[0].log
    assert isinstance(first, BlockLog) and len(first) == 1650 and len(again) == 1600


def test_knobs_cut_and_time_the_trace(from_lines):
    def arrivals(**knobs):
        return [[t.arrival_s for t in c.turns] for c in from_lines("mooncake", TRACE, **knobs).conversations()]

    assert arrivals(limit=1, time_scale=10) == [[0, 20, 30]]
    assert arrivals(max_context=1680) == [[0, 2], [1], [3.5]]
    assert arrivals(max_context=1649) == [[1], [3.5]]
    [[a, b, c], *_] = arrivals(rate=3)
    assert a > 0 and (b - a, c - a) == pytest.approx((2, 3))
    closed = next(iter(from_lines("mooncake", TRACE, think_time_s=5).conversations()))
    assert [t.arrival_s for t in closed.turns] == [None] * 3 and closed.turns[1].think_s > 0


def test_no_model_can_run_it(from_lines):
    with pytest.raises(ValueError, match="no token ids.*use backend=simulated"):
        from_lines("mooncake", TRACE, symbolic=False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (request(0, 600, 1, [0]), "data.jsonl:2: 'hash_ids' has 1 ids, expected 2 for an 'input_length' of 600"),
        (request(0, 600, 1, [0, "x"]), "data.jsonl:2: 'hash_ids' is .*, expected a list of whole numbers"),
        (request(-1, 1, 1, [0]), "data.jsonl:2: 'timestamp' is -1, expected a number >= 0"),
        (request(0, 0, 1, []), "'input_length' is 0, expected a whole number >= 1"),
        (request(0, 1, "many", [0]), "'output_length' is \"many\", expected a whole number >= 1"),
        ({"timestamp": 3}, "data.jsonl:2: 'input_length' is missing"),
        ('{"timestamp": 0, "input_len', "data.jsonl:2: found .*, expected a JSON object"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(from_lines, line, message):
    with pytest.raises(ValueError, match=message) as error:
        from_lines("mooncake", [TRACE[0], line])
    assert "\n" not in str(error.value)


def test_the_public_trace(data, from_lines):
    path = data / "mooncake" / "conversation_trace.jsonl"
    start = time.process_time()
    workload = from_lines("mooncake", [], path=str(path))
    loaded_s = time.process_time() - start
    turns = [(t.arrival_s, t.log.request, c.id, t) for c in workload.conversations() for t in c.turns]
    turns.sort(key=lambda row: row[:2])
    assert (len(workload), len(turns)) == (8209, 12031)
    assert sum(len(t.log) for *_, t in turns) / len(turns) == pytest.approx(12_035, abs=1)
    pairs = [pair for c in workload.conversations() for pair in pairwise(c.turns)]
    added = [len(later.log) - len(earlier.log) - earlier.output_tokens for earlier, later in pairs]
    assert len(pairs) == 12031 - 8209
    assert sum(0 <= n <= 200 for n in added) / len(pairs) == pytest.approx(0.61, abs=0.005)
    index, start = PrefixIndex(), time.process_time()
    reusable = [index.arrive(c, t.log, len(t.log)) for _, _, c, t in turns]
    indexed_s = time.process_time() - start
    blocks = sum(-(-n // 512) for n in reusable) / sum(-(-len(t.log) // 512) for *_, t in turns)
    assert blocks == pytest.approx(0.366, abs=0.001)  # what an unlimited cache hits, as the data's authors counted
    assert loaded_s < 2 and indexed_s < 1
