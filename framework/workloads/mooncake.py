"""Traces in Mooncake's format: arrivals, lengths and prefix-block ids, no text and no conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..schema import ConfigError
from .common import FileKnobs, ListedWorkload, Setting
from .conversation import Conversation, Turn, Workload
from .reading import Row, read_rows
from .tokens import BlockLog

BLOCK_TOKENS = 512
MAX_SHARING = 40  # a block that more requests hold is a common prompt, not a conversation


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One line of the trace: ``block_ids[i]`` stands for the i-th block of 512 input tokens and all before it."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    block_ids: list[int]


@dataclass(frozen=True)
class Mooncake(FileKnobs):
    """Open loop by the trace's timestamps; conversations are inferred by :func:`infer_parents`. Simulated backend only.

    The history of a turn is its parent's input and, where the input is long enough to hold it, its parent's output.
    With ``rate``, conversations start anew and keep their inner distances; with ``think_time_s`` turns wait for the
    reply.
    """

    def open(self, setting: Setting) -> Workload:
        if not setting.symbolic:
            raise ConfigError("workload=mooncake has no token ids, so no model can run it; use backend=simulated")
        requests = [_parse(row) for row in read_rows(self.file())]
        requests.sort(key=lambda r: r.arrival_s)
        return ListedWorkload("mooncake", self.arrange(_conversations(requests), setting), setting, self.warmup)


def _parse(row: Row) -> TraceRequest:
    arrival_s = row.number("timestamp") / 1000
    tokens, output = row.whole("input_length", 1), row.whole("output_length", 1)
    blocks = row.whole_list("hash_ids", 2**62)
    if len(blocks) != -(-tokens // BLOCK_TOKENS):
        raise ConfigError(
            f"{row.where}: 'hash_ids' has {len(blocks)} ids, expected {-(-tokens // BLOCK_TOKENS)} for an "
            f"'input_length' of {tokens} in blocks of {BLOCK_TOKENS}"
        )
    return TraceRequest(arrival_s, tokens, output, blocks)


def infer_parents(requests: Sequence[TraceRequest]) -> list[int]:
    """For each request, in order of arrival, the request that it goes on from; -1: it starts a conversation.

    The parent is the latest earlier request that holds the deepest block known before, if that block is not the first,
    at most ``MAX_SHARING`` requests of the trace hold it, it covers all full blocks of the parent, and the input is
    longer.
    """
    sharing = Counter(block for r in requests for block in set(r.block_ids))
    holder: dict[int, int] = {}
    parents = []
    for index, request in enumerate(requests):
        parents.append(_parent(request, requests, sharing, holder))
        holder.update(dict.fromkeys(request.block_ids, index))
    return parents


def _parent(
    request: TraceRequest, requests: Sequence[TraceRequest], sharing: Counter[int], holder: dict[int, int]
) -> int:
    for depth in range(len(request.block_ids) - 1, 0, -1):
        block = request.block_ids[depth]
        if block in holder:
            parent = requests[holder[block]]
            covers = depth + 1 >= parent.input_tokens // BLOCK_TOKENS and request.input_tokens > parent.input_tokens
            return holder[block] if covers and sharing[block] <= MAX_SHARING else -1
    return -1


def _conversations(requests: Sequence[TraceRequest]) -> Iterator[Conversation]:
    turns: dict[int, list[Turn]] = {}  # first request of a conversation -> its turns
    first: list[int] = []
    for index, (request, parent) in enumerate(zip(requests, infer_parents(requests), strict=True)):
        first.append(index if parent < 0 else first[parent])
        history = 0 if parent < 0 else _history(requests[parent], request)
        turns.setdefault(first[index], []).append(_turn(index, request, history))
    for index, of_one in turns.items():
        yield Conversation(index, requests[index].arrival_s, tuple(of_one), f"request {index}")


def _history(parent: TraceRequest, request: TraceRequest) -> int:
    spoken = parent.input_tokens + parent.output_tokens
    return spoken if spoken < request.input_tokens else parent.input_tokens


def _turn(index: int, request: TraceRequest, history: int) -> Turn:
    log = BlockLog(np.array(request.block_ids, np.int64), BLOCK_TOKENS, request.input_tokens, index)
    return Turn(
        prompt_tokens=request.input_tokens - history,
        output_tokens=request.output_tokens,
        arrival_s=request.arrival_s,
        log=log,
        history_tokens=history,
    )
