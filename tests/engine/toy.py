"""A model small enough to check by hand: the next token is a hash of all tokens, read back through the page table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvarena.framework.engine import Engine, EnginePolicies
from kvarena.framework.execution.clocks import VirtualClock
from kvarena.framework.execution.contract import Batch, Segment, StepResult
from kvarena.framework.memory import PageStore
from kvarena.framework.metrics.records import RequestRecord, StepRecord, TransferRecord
from kvarena.framework.policy import Eviction, Prefetch, Scheduling, Tier
from kvarena.framework.session import Arrivals, Session
from kvarena.framework.workloads.conversation import Conversation, Turn
from kvarena.framework.workloads.tokens import IdLog, TokenLog
from kvarena.policies.compression.none import NoCompression
from kvarena.policies.routing.single import SingleInstance
from kvarena.policies.truncation.none import NoTruncation
from kvarena.policies.writeback.none import NoWriteback

VOCABULARY = 97


def next_token(ids: Sequence[int]) -> int:
    """The toy model itself."""
    state = 7
    for token in ids:
        state = (state * 31 + token + 1) % 1_000_003
    return state % VOCABULARY


class ToyCosts:
    def recompute_s(self, start: int, stop: int) -> float:
        return 1e-3 * (stop - start)

    def load_s(self, tokens: int, tier: Tier) -> float:
        return 1e-4 * tokens


class ToyExecutor:
    """Writes token ids into page slots and reads them back; an unwritten or foreign slot changes the answer."""

    max_steps = 1
    costs = ToyCosts()

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.slots = np.full((num_pages, page_size), -1, dtype=np.int64)
        self.computed_tokens = 0
        self.written: dict[int, int] = {}

    def run(self, batch: Batch) -> StepResult:
        for part in batch.segments:
            if part.write:
                self._write(part)
        for part in batch.segments:
            self.computed_tokens += part.length
        tokens = [next_token(self._read(part)) for part in batch.segments if part.sample]
        return StepResult(tokens, 0.01 + 1e-3 * sum(part.length for part in batch.segments))

    def _write(self, part: Segment) -> None:
        positions = np.arange(part.start, part.start + part.length)
        pages = part.table[positions // self.page_size]
        assert (pages >= 0).all(), "a page to write to is missing"
        self.slots[pages, positions % self.page_size] = part.log.ids(part.start, part.start + part.length)

    def _read(self, part: Segment) -> list[int]:
        positions = np.arange(part.start + part.length)
        pages = part.table[positions // self.page_size]
        assert (pages >= 0).all(), "a page to read is missing"
        return [int(token) for token in self.slots[pages, positions % self.page_size]]

    def duration_until(self, batch: Batch, limit_s: float) -> int:
        return 1

    def close(self) -> None: ...


@dataclass
class Recording:
    requests: list[RequestRecord] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)

    def request(self, record: RequestRecord) -> None:
        self.requests.append(record)

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def transfer(self, record: TransferRecord) -> None:
        raise AssertionError("nothing is transferred here")

    def outputs(self) -> dict[tuple[int, int], list[int]]:
        return {(record.conversation, record.turn): record.output_ids for record in self.requests}


@dataclass
class ToyWorkload:
    """Conversations given as lists of (prompt ids, output tokens)."""

    turns: Sequence[Sequence[tuple[Sequence[int], int]]]
    think_s: float = 0.05
    gap_s: float = 0.02
    barrier: bool = False
    symbolic: bool = False
    name: str = "toy"

    def __len__(self) -> int:
        return len(self.turns)

    def conversations(self) -> Iterable[Conversation]:
        for index, turns in enumerate(self.turns):
            made = tuple(
                Turn(len(prompt), output, self.think_s, prompt_ids=np.array(prompt, dtype=np.int32))
                for prompt, output in turns
            )
            yield Conversation(index, index * self.gap_s, made)

    def new_log(self, conversation: Conversation) -> TokenLog:
        return IdLog()

    def expected(self) -> dict[tuple[int, int], list[int]]:
        """What a model without any cache says."""
        outputs = {}
        for index, turns in enumerate(self.turns):
            context: list[int] = []
            for turn, (prompt, tokens) in enumerate(turns):
                context += prompt
                reply = []
                for _ in range(tokens):
                    reply.append(next_token(context))
                    context.append(reply[-1])
                outputs[index, turn] = reply
        return outputs

    def longest(self) -> int:
        return max(sum(len(prompt) + tokens for prompt, tokens in turns) for turns in self.turns)

    def total(self) -> int:
        return sum(len(prompt) + tokens for turns in self.turns for prompt, tokens in turns)


class CheckedEngine(Engine):
    """Checks the store after every step."""

    def step(self, now: float, horizon_s: float = float("inf")) -> float:
        end = super().step(now, horizon_s)
        self.store.check()
        return end


@dataclass
class Run:
    recording: Recording
    engine: Engine
    executor: Any


def serve(
    workload: ToyWorkload,
    num_pages: int,
    page_size: int,
    *,
    eviction: Eviction,
    prefetch: Prefetch,
    scheduling: Scheduling,
    executor: Any = None,
) -> Run:
    """Serve ``workload`` to the end, on the toy model unless another ``executor`` is given."""
    recording, clock, arrivals = Recording(), VirtualClock(), Arrivals()
    store = PageStore(
        page_size,
        {Tier.DEVICE: num_pages},
        {Tier.DEVICE: eviction},
        costs=ToyCosts(),
        leaves_only=not prefetch.holes,
        future=arrivals,
    )
    executor = executor or ToyExecutor(num_pages, page_size)
    policies = EnginePolicies(scheduling, prefetch, NoWriteback(), NoTruncation(), NoCompression())
    engine = CheckedEngine(executor, store, policies, recording, clock)
    Session(workload, [engine], SingleInstance(), clock, recording, arrivals=arrivals).run()
    return Run(recording, engine, executor)
