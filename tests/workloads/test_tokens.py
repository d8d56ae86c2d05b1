"""Page keys are equal exactly if the prefixes are, for every kind of log and however it was extended."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvarena.framework.workloads.tokens import BlockLog, IdLog, StreamLog, TokenLog

PAGE_SIZES = st.integers(1, 7)
IDS = st.lists(st.integers(0, 1), max_size=24)


def prefix_key(log: TokenLog, page_size: int, tokens: int) -> int:
    """The key of the page, full or partial, that ends at ``tokens``."""
    if tokens % page_size:
        return log.tail_key(page_size, tokens)
    return int(log.page_keys(page_size, tokens)[-1])


def assert_keys_tell_prefixes(logs: list[TokenLog], contents: list[list[object]], page_size: int) -> None:
    """Over all pairs of pages of all logs: equal keys if and only if equal prefixes."""
    content_of: dict[int, tuple[object, ...]] = {}
    key_of: dict[tuple[object, ...], int] = {}
    for log, content in zip(logs, contents, strict=True):
        assert len(log) == len(content)
        for tokens in range(1, len(content) + 1):
            prefix, key = tuple(content[:tokens]), prefix_key(log, page_size, tokens)
            assert content_of.setdefault(key, prefix) == prefix
            assert key_of.setdefault(prefix, key) == key


def as_ids(values: list[int]) -> np.ndarray:
    return np.array(values, np.int32)


@given(st.lists(IDS, min_size=2, max_size=4), PAGE_SIZES)
def test_id_keys_are_equal_exactly_if_the_prefixes_are(contents, page_size):
    assert_keys_tell_prefixes([IdLog(as_ids(c)) for c in contents], contents, page_size)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(0, 20)), min_size=2, max_size=4), PAGE_SIZES
)
def test_stream_keys_are_equal_exactly_if_the_prefixes_are(streams, page_size):
    logs, contents = [], []
    for stream, shared, tokens in streams:
        log = StreamLog(stream, shared)
        log.extend(tokens)
        logs.append(log)
        contents.append([(0 if i < shared else stream, i) for i in range(tokens)])
    assert_keys_tell_prefixes(logs, contents, page_size)


@given(st.lists(st.tuples(IDS, st.integers(0, 6)), min_size=2, max_size=4), st.integers(1, 5), PAGE_SIZES)
def test_block_keys_are_equal_exactly_if_the_prefixes_are(requests, block_tokens, page_size):
    ids: dict[tuple[int, ...], int] = {}  # the id of a block stands for all its tokens and what precedes them
    logs, contents = [], []
    for request, (tokens, appended) in enumerate(requests):
        extended = tokens + [0] * (-len(tokens) % block_tokens)
        ends = range(block_tokens, len(extended) + 1, block_tokens)
        blocks = [ids.setdefault(tuple(extended[:end]), len(ids)) for end in ends]
        log = BlockLog(np.array(blocks, np.int64), block_tokens, len(tokens), request)
        log.extend(appended)
        logs.append(log)
        # the prefix is known by its blocks only: what the last block would go on with belongs to its identity
        content = [(blocks[i // block_tokens], i) for i in range(len(tokens))]
        contents.append(content + [("appended", request, i) for i in range(appended)])
    for log, content in zip(logs, contents, strict=True):
        for other, theirs in zip(logs, contents, strict=True):
            for tokens in range(1, min(len(content), len(theirs)) + 1):
                same = content[tokens - 1] == theirs[tokens - 1]
                assert (prefix_key(log, page_size, tokens) == prefix_key(other, page_size, tokens)) == same


@given(IDS, st.lists(st.integers(1, 5), min_size=24, max_size=24), PAGE_SIZES)
def test_extending_in_any_chunking_gives_the_same_keys(ids, cuts, page_size):
    whole_id, whole_stream = IdLog(as_ids(ids)), StreamLog(3, 5)
    whole_stream.extend(len(ids))
    pieces_id, pieces_stream = IdLog(), StreamLog(3, 5)
    done = 0
    for cut in cuts:
        piece = ids[done : done + cut]
        pieces_id.extend(len(piece), as_ids(piece))
        pieces_stream.extend(len(piece))
        done += len(piece)
        pieces_id.page_keys(page_size, done)  # keys are kept as the log grows
    for whole, pieces in ((whole_id, pieces_id), (whole_stream, pieces_stream)):
        assert len(pieces) == len(ids)
        for tokens in range(1, len(ids) + 1):
            assert prefix_key(pieces, page_size, tokens) == prefix_key(whole, page_size, tokens)


def test_a_long_log_has_distinct_keys_at_every_page_size():
    block = BlockLog(np.arange(40), 512, 20_000, 7)
    stream = StreamLog(2, 100)
    for log in (block, stream):
        log.extend(20_000)
        for page_size in (1, 16, 20, 512, 600):
            keys = log.page_keys(page_size, len(log))
            assert keys.dtype == np.int64 and len(keys) == len(log) // page_size
            assert len(set(keys.tolist())) == len(keys)


def test_views_are_read_only_and_outlive_growth():
    log = IdLog(as_ids(list(range(70))))
    keys, ids = log.page_keys(4, 70), log.ids(3, 6)
    expected = keys.copy()
    log.extend(5000, np.zeros(5000, np.int32))
    log.page_keys(4, 5000)
    assert ids.tolist() == [3, 4, 5] and (keys == expected).all()
    for view in (keys, ids):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1


def test_unknown_ids_are_refused_or_derived_from_the_stream():
    with pytest.raises(ValueError, match="the ids of 3 tokens are unknown"):
        IdLog().extend(3)
    logs = [IdLog(as_ids([1, 2]), stream=s) for s in (1, 2, 1)]
    for log in logs:
        log.extend(2)
    logs[0].extend(3)
    logs[2].extend(1)
    logs[2].extend(2)
    a, b, c = (log.ids(2, len(log)) for log in logs)
    assert (a < 0).all() and len(set(a.tolist())) == 5
    assert a.tolist() == c.tolist() and not set(a.tolist()) & set(b.tolist())


@pytest.mark.parametrize("log", [StreamLog(1), BlockLog(np.arange(1), 4, 2, 0)])
def test_symbolic_logs_have_no_ids(log):
    with pytest.raises(TypeError, match="symbolic"):
        log.ids(0, 1)
    with pytest.raises(TypeError, match="takes no ids"):
        log.extend(1, as_ids([1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: IdLog(as_ids([1])).page_keys(0, 1), "page_size is 0; it must be >= 1"),
        (lambda: IdLog(as_ids([1])).page_keys(4, 2), "num_tokens is 2; this log holds 0..1"),
        (lambda: StreamLog(1).page_keys(4, 1), "num_tokens is 1; this log holds 0..0"),
        (lambda: IdLog(as_ids([1, 2])).tail_key(2, 2), "no partial page"),
        (lambda: IdLog(as_ids([1, 2])).tail_key(2, 3), "this log holds 0..2"),
        (lambda: IdLog(as_ids([1])).ids(0, 2), "not within 0..1"),
        (lambda: IdLog().extend(2, as_ids([1])), "1 ids were given for 2 tokens"),
        (lambda: StreamLog(1).extend(-1), "num_tokens is -1"),
        (lambda: StreamLog(-1), "must be >= 0"),
        (lambda: BlockLog(np.arange(2), 512, 512, 0), "do not make 2 block ids"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
