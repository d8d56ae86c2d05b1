"""Workloads as pages: the order of requests, what is asked for, numbering, what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvarena.framework.replay.requests import in_order
from kvarena.framework.replay.trace import Asking, check_pages, gather
from kvarena.framework.schema import ConfigError
from kvarena.framework.workloads import Workload, make_workload


def symbolic(name: str, **knobs: Any) -> Workload:
    return make_workload(name, knobs, 0, 1000, None, True)


def mooncake(folder: Path, *requests: tuple[int, int, list[int]]) -> Workload:
    """Requests of (timestamp in ms, input tokens, block ids)."""
    path = folder / "trace.jsonl"
    keys = ("timestamp", "input_length", "hash_ids")
    rows = [{**dict(zip(keys, row, strict=True)), "output_length": 100} for row in requests]
    path.write_text("\n".join(map(json.dumps, rows)))
    return symbolic("mooncake", path=str(path))


def jsonl(folder: Path, *conversations: dict[str, Any]) -> Workload:
    path = folder / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, conversations)))
    return symbolic("jsonl", path=str(path))


def turn(ids: list[int], reply: list[int], **more: Any) -> dict[str, Any]:
    return {"prompt_ids": ids, "reply_ids": reply, **more}


def rows(asking: Asking) -> list[list[int]]:
    trace = asking.trace
    return [trace.pages[a:b] for a, b in zip(trace.bounds, trace.bounds[1:], strict=False)]


def test_a_trace_keeps_its_order_within_a_tick(tmp_path: Path) -> None:
    """Request 2 goes on from request 0; at one timestamp the lines' order holds, whatever conversations they make."""
    opened = mooncake(
        tmp_path, (0, 1024, [1, 2]), (3000, 600, [1, 9]), (3000, 1536, [1, 2, 3]), (3000, 512, [1]), (0, 513, [1, 4])
    )
    asking = gather(in_order(opened), "block", 16)
    assert rows(asking) == [[0, 1], [0, 2], [0, 3], [0, 1, 4], [0]]
    assert asking.page_tokens == 512
    assert asking.trace.arrivals_s == [0.0, 0.0, 3.0, 3.0, 3.0]
    assert (asking.trace.conversations[0], asking.trace.limits) == (asking.trace.conversations[3], [2, 2, 2, 3, 1])


def test_prefix_takes_full_pages_of_a_trace_and_no_outputs(tmp_path: Path) -> None:
    opened = mooncake(tmp_path, (0, 1024, [1, 2]), (1, 600, [1, 9]), (2, 100, [5]))
    asking = gather(in_order(opened), "prefix", 512)
    assert rows(asking) == [[0, 1], [0], []]
    assert (asking.trace.limits, asking.trace.tails, asking.asked.tolist()) == ([1, 1, 0], [0, 1, 1], [2, 1, 0])
    small = gather(in_order(opened), "prefix", 256)
    assert rows(small) == [[0, 1, 2, 3], [0, 1], []]


def test_replies_with_an_identity_are_stored_but_not_asked_for(tmp_path: Path) -> None:
    chat = {"turns": [turn([1, 2, 3], [4, 5, 6]), turn([7, 8], [9, 9])]}
    prefix = gather(in_order(jsonl(tmp_path, chat)), "prefix", 2)
    assert rows(prefix) == [[0, 1], [0, 1, 2, 3]]  # 3 + 3 - 1 = 5 tokens are computed, then 8 + 2 - 1 = 9
    assert (prefix.asked.tolist(), prefix.trace.limits, prefix.trace.tails) == ([1, 4], [1, 3], [1, 1])
    block = gather(in_order(jsonl(tmp_path, chat)), "block", 2)
    assert rows(block) == [[0], [0, 1, 2, 3]]
    assert [column.tolist() for column in (block.new_tokens, block.input_tokens, block.reply_tokens)] == [
        [3, 2],
        [3, 8],
        [3, 2],
    ]


def test_equal_beginnings_are_the_same_pages_across_conversations(tmp_path: Path) -> None:
    chats = [{"turns": [turn([1, 2, 3, 4], [0])]}, {"turns": [turn([1, 2, 3, 5], [0])]}]
    assert rows(gather(in_order(jsonl(tmp_path, *chats)), "block", 2)) == [[0, 1], [0, 2]]


def test_turns_arrive_by_start_and_think_times_alone(tmp_path: Path) -> None:
    slow = {"start_s": 1.0, "turns": [turn([1, 1], [1]), turn([1, 1], [1], think_s=5.0)]}
    quick = {"start_s": 2.0, "turns": [turn([2, 2], [2]), turn([2, 2], [2], think_s=1.0), turn([2, 2], [2])]}
    asked = list(in_order(jsonl(tmp_path, slow, quick)))
    assert [(one.conversation, one.arrival_s) for one in asked] == [(0, 1.0), (1, 2.0), (1, 3.0), (1, 3.0), (0, 6.0)]


def test_where_nothing_has_a_time_turns_take_turns() -> None:
    opened = symbolic("rounds", limit=3, turns=2, prompt_tokens=4, output_tokens=4)
    assert [one.conversation for one in in_order(opened)] == [0, 1, 2, 0, 1, 2]


def test_a_chat_without_ids_finds_its_own_history() -> None:
    opened = symbolic("rounds", limit=2, turns=2, prompt_tokens=8, output_tokens=8, system_prompt_tokens=8)
    asking = gather(in_order(opened), "prefix", 8)
    assert rows(asking) == [[0, 1], [0, 2], [0, 1, 3, 4], [0, 2, 5, 6]]


def test_no_full_page_is_nothing_to_replay(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no full page of 16 tokens: there is nothing to replay"):
        check_pages(in_order(jsonl(tmp_path, {"turns": [turn([1, 2], [3])]})), "block", 16, None)


def test_requests_that_never_fit_are_left_out(tmp_path: Path) -> None:
    chats = [{"turns": [turn([n] * size, [0])]} for n, size in ((1, 4), (2, 7), (1, 4))]
    asking = gather(in_order(jsonl(tmp_path, *chats)), "prefix", 2)
    assert [len(row) for row in rows(asking)] == [2, 3, 2]
    trace, fits = asking.fitting(3)  # seven tokens need three full pages and one more
    assert fits.tolist() == [True, False, True]
    assert (trace.pages, trace.bounds, trace.limits, trace.tails) == ([0, 1, 0, 1], [0, 2, 4], [1, 1], [0, 0])
    assert asking.fitting(4)[0] is asking.trace
