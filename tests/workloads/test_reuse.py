"""The reusable prefix, held against a comparison with everything that came before."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvarena.framework.workloads.reuse import PrefixIndex
from kvarena.framework.workloads.tokens import BlockLog, IdLog, StreamLog


def as_ids(values):
    return np.array(values, np.int32)


def common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


CHUNK = st.lists(st.integers(0, 1), min_size=1, max_size=6)
EVENTS = st.lists(st.tuples(st.integers(0, 3), CHUNK, CHUNK, st.booleans(), st.booleans()), max_size=12)


@given(EVENTS)
def test_ids_are_compared_with_all_that_came_before(events):
    index, logs, seen = PrefixIndex(), {}, []
    for conversation, prompt, reply, foreseen, fresh_log in events:
        log = logs.get(conversation, IdLog())
        if fresh_log:  # a workload may give each turn a log of its own
            log = IdLog(log.ids(0, len(log)))
        logs[conversation] = log
        log.extend(len(prompt), as_ids(prompt))
        content = log.ids(0, len(log)).tolist()
        expected = max((common(content, other) for other in seen), default=0)
        assert index.arrive(conversation, log, len(log), as_ids(reply) if foreseen else None) == expected
        log.extend(len(reply), as_ids(reply))
        if not foreseen:
            index.replied(conversation, log, len(log))
        seen.append(log.ids(0, len(log)).tolist())


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), max_size=12), st.integers(0, 10))
def test_streams_reuse_what_they_said_and_the_shared_prefix(events, shared):
    index, logs, seen = PrefixIndex(), {}, []
    for stream, prompt, reply in events:
        log = logs.setdefault(stream, StreamLog(stream, shared))
        log.extend(prompt)
        content = [(0 if i < shared else stream, i) for i in range(len(log) + reply)]
        expected = max((common(content[: len(log)], other) for other in seen), default=0)
        assert index.arrive(stream, log, len(log)) == expected
        log.extend(reply)
        index.replied(stream, log, len(log))
        seen.append(content)


def test_blocks_reuse_leading_blocks_but_no_reply():
    index = PrefixIndex()

    def arrive(request, blocks, tokens):
        log = BlockLog(np.array(blocks, np.int64), 4, tokens, request)
        reusable = index.arrive(request, log, tokens)
        log.extend(9)
        index.replied(request, log, len(log))
        return reusable

    assert arrive(0, [0, 1, 2], 10) == 0
    assert arrive(1, [0, 1, 2], 11) == 10  # the last block was seen half
    assert arrive(2, [0, 1, 2], 11) == 11
    assert arrive(3, [0, 1, 3, 2], 16) == 8  # a block behind an unseen one does not count
    assert arrive(4, [0, 1, 3], 9) == 9
    assert arrive(5, [7], 4) == 0


def test_what_only_an_ended_conversation_needed_is_forgotten():
    index = PrefixIndex()
    for stream in (1, 2):
        log = StreamLog(stream, 3)
        log.extend(5)
        index.arrive(stream, log, 5)
        index.ended(stream, log)
    assert not index._streams
    other = StreamLog(3, 4)
    other.extend(9)
    assert index.arrive(3, other, 9) == 3


def test_an_unknown_kind_of_log_is_refused():
    with pytest.raises(TypeError, match="list is not IdLog"):
        PrefixIndex().arrive(0, [], 0)


def test_long_conversations_are_not_compared_again():
    index, log = PrefixIndex(), IdLog()
    piece, start = np.arange(100, dtype=np.int32), time.process_time()
    for turn in range(2000):
        log.extend(100, piece)
        assert index.arrive(0, log, len(log)) == 100 * turn
    assert time.process_time() - start < 1.0
