"""A model small enough to check by hand: the next token is a hash of all tokens, read back through the page table."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvarena.framework.engine import Engine, EnginePolicies
from kvarena.framework.execution.clocks import VirtualClock
from kvarena.framework.execution.contract import Batch, Clock, Segment, StepResult
from kvarena.framework.execution.transfers import Transfer
from kvarena.framework.footprint import Footprint
from kvarena.framework.memory import PageStore
from kvarena.framework.memory.moves import Move
from kvarena.framework.metrics import KeptRecords
from kvarena.framework.policy import Eviction, Prefetch, Scheduling, Tier, Truncation, Writeback
from kvarena.framework.session import Arrivals, Session
from kvarena.framework.waiting import WaitingQueue
from kvarena.framework.workloads.conversation import Conversation, Turn
from kvarena.framework.workloads.tokens import IdLog, TokenLog
from kvarena.policies.compression.none import NoCompression
from kvarena.policies.routing.single import SingleInstance
from kvarena.policies.truncation.none import NoTruncation
from kvarena.policies.writeback.none import NoWriteback

VOCABULARY = 97
LAYERS = 2


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


class ToyLinks:
    """Copies token ids between tiers; a transfer reads its source and fills its target when it ends, so that a
    dependency that was forgotten changes the answer. Disk transfers fail now and then if ``fault_rate`` > 0."""

    def __init__(
        self, slots: dict[Tier, np.ndarray], seed: int = 0, fault_rate: float = 0.0, page_s: float = 2e-3
    ) -> None:
        self.slots = slots
        self.rng = np.random.default_rng(seed)
        self.fault_rate, self.page_s = fault_rate, page_s
        self.disk_keys = np.zeros(len(slots.get(Tier.DISK, ())), np.int64)
        self.flying: list[Transfer] = []
        self.finished: list[Transfer] = []
        self.planned: dict[Transfer, tuple[float, float]] = {}
        self.moves: Counter[str] = Counter()
        self.carried: list[Move] = []
        self.faults = 0
        self.reached_s = 0.0

    def submit(self, move: Move, now_s: float, after: Sequence[Transfer] = ()) -> Transfer:
        start_s = max([max(now_s, self.reached_s), *(self.end_s(other) for other in after)])
        transfer = Transfer(move, move.pages, 1, now_s)
        self.planned[transfer] = (start_s, start_s + move.pages * self.page_s * self.rng.uniform(0.1, 10))
        self.flying.append(transfer)
        self.moves[move.link] += move.pages
        self.carried.append(move)
        return transfer

    def end_s(self, transfer: Transfer) -> float:
        return transfer.end_s if transfer.end_s is not None else self.planned[transfer][1]

    def run_to(self, now_s: float) -> None:
        """Carry out what has ended by ``now_s``, in the order of the ends."""
        self.reached_s = max(self.reached_s, now_s)
        due = sorted((t for t in self.flying if self.planned[t][1] <= now_s), key=lambda t: self.planned[t][1])
        for transfer in due:
            self.flying.remove(transfer)
            transfer.start_s, end_s = self.planned[transfer]
            self._perform(transfer)
            transfer.end_s = end_s
            self.finished.append(transfer)

    def _perform(self, transfer: Transfer) -> None:
        move = transfer.move
        faulty = np.zeros(move.pages, bool)
        if Tier.DISK in (move.source, move.target):
            faulty = self.rng.random(move.pages) < self.fault_rate
        if move.source is Tier.DISK:
            faulty |= self.disk_keys[move.source_slots] != move.keys
        if move.layers is None or sum(move.layers) == LAYERS:  # what the toy stores is in its last layer
            self.slots[move.target][move.target_slots] = self.slots[move.source][move.source_slots]
        if move.target is Tier.DISK:
            self.disk_keys[move.target_slots] = np.where(faulty, 0, move.keys)
        self.slots[move.target][move.target_slots[faulty]] = -7
        transfer.failed = np.flatnonzero(faulty)
        self.faults += int(faulty.sum())

    def poll(self, now_s: float) -> list[Transfer]:
        self.run_to(now_s)
        done = [transfer for transfer in self.finished if self.end_s(transfer) <= now_s]
        self.finished = [transfer for transfer in self.finished if self.end_s(transfer) > now_s]
        return done

    def next_end_s(self, now_s: float) -> float:
        return min((self.end_s(t) for t in [*self.flying, *self.finished]), default=float("inf"))

    def wait(self, timeout_s: float | None = None) -> None: ...

    def cancel(self, transfer: Transfer) -> bool:
        if transfer.done or self.planned[transfer][0] <= self.reached_s:
            return False
        self.flying.remove(transfer)
        transfer.cancelled, transfer.start_s, transfer.end_s = True, self.reached_s, self.reached_s
        self.finished.append(transfer)
        return True

    def problems(self) -> list[str]:
        return []

    def closed(self) -> tuple[Tier, ...]:
        return ()

    def close(self) -> None: ...


class ToyExecutor:
    """Writes token ids into page slots and reads them back; an unwritten or foreign slot changes the answer."""

    max_steps = 1
    sums_decodes = False
    costs = ToyCosts()

    def __init__(self, num_pages: int, page_size: int, links: ToyLinks | None = None) -> None:
        self.page_size = page_size
        self.slots = np.full((num_pages, page_size), -1, dtype=np.int64) if links is None else links.slots[Tier.DEVICE]
        self.links = links
        self.computed_tokens = 0
        self.stalls = 0

    def run(self, batch: Batch) -> StepResult:
        start_s = self._settle(batch)
        for part in batch.segments:
            if part.write:
                self._write(part)
        for part in batch.segments:
            self.computed_tokens += part.length
        tokens = [next_token(self._read(part)) for part in batch.segments if part.sample]
        compute_s, stall_s = 0.01 + 1e-3 * sum(part.length for part in batch.segments), start_s - batch.start_s
        return StepResult(tokens, compute_s + stall_s, stall_s=stall_s)

    def _settle(self, batch: Batch) -> float:
        """What the batch does not wait for is carried out later: it must not matter."""
        if self.links is None or not (batch.waits or batch.loads):
            return batch.start_s
        until = max([batch.start_s, *(self.links.end_s(transfer) for transfer in [*batch.waits, *batch.loads])])
        self.stalls += until > batch.start_s
        self.links.run_to(until)
        return until

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
    """Checks the store after every step, and that there is an end to them."""

    steps = 0

    def step(self, now: float, horizon: Callable[[], float] = lambda: float("inf")) -> float:
        end = super().step(now, horizon)
        self.store.check()
        self.steps += 1
        assert self.steps < 5000, f"no end: {len(self.running)} running, {len(self.waiting)} waiting at {now}"
        return end


@dataclass
class Run:
    recording: KeptRecords
    engine: Engine
    executor: Any
    links: ToyLinks | None = None


def serve(
    workload: ToyWorkload,
    num_pages: int,
    page_size: int,
    *,
    eviction: Eviction,
    prefetch: Prefetch,
    scheduling: Scheduling,
    writeback: Writeback | None = None,
    below: Mapping[Tier, int] | None = None,
    executor: Any = None,
    links: Any = None,
    truncation: Truncation | None = None,
    window: int | None = None,
    footprint: Footprint | None = None,
    seed: int = 0,
    fault_rate: float = 0.0,
    clock: Clock | None = None,
) -> Run:
    """Serve ``workload`` to the end, on the toy model unless another ``executor`` is given.

    ``window``: the most tokens that a context may have. ``footprint``: of narrowed ones. ``below``: pages of the host
    and disk tiers. ``clock``: that of ``links``, None: a virtual one.
    """
    recording, clock, arrivals, queue = KeptRecords(), clock or VirtualClock(), Arrivals(), WaitingQueue()
    capacity = {Tier.DEVICE: num_pages, **(below or {})}
    writeback = writeback or NoWriteback()
    store = PageStore(
        page_size,
        capacity,
        {tier: copy.deepcopy(eviction) for tier in capacity},
        costs=ToyCosts(),
        writeback=writeback,
        leaves_only=not prefetch.holes,
        future=arrivals,
        queue=queue,
    )
    if below and links is None:
        slots = {tier: np.full((pages, page_size), -1, dtype=np.int64) for tier, pages in capacity.items()}
        links = ToyLinks(slots, seed, fault_rate)
    executor = executor or ToyExecutor(num_pages, page_size, links)
    policies = EnginePolicies(scheduling, prefetch, writeback, truncation or NoTruncation(), NoCompression())
    engine = CheckedEngine(
        *(executor, store, policies, recording, clock),
        queue=queue,
        links=links,
        max_tokens=window,
        footprint=footprint,
        num_layers=LAYERS,
    )
    Session(workload, [engine], SingleInstance(), clock, recording, arrivals=arrivals).run()
    assert all(record.start_s <= record.end_s for record in recording.transfers)
    return Run(recording, engine, executor, links)
