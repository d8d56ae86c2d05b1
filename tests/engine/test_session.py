"""Arrivals, barriers, failures, and stretches of decode steps."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kvarena.framework.engine import Engine, EnginePolicies
from kvarena.framework.execution.clocks import VirtualClock
from kvarena.framework.execution.contract import ModelShape
from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.simulated import SimulatedExecutor
from kvarena.framework.execution.transfers import Transfer
from kvarena.framework.memory import PageStore, Run
from kvarena.framework.metrics import KeptRecords, RequestRecord
from kvarena.framework.policy import Plan, Prefetch, Scheduling, Tier
from kvarena.framework.request import Request
from kvarena.framework.schema import build
from kvarena.framework.session import Arrivals, Session
from kvarena.framework.waiting import WaitingQueue
from kvarena.framework.workloads import make_workload
from kvarena.framework.workloads.conversation import Conversation, Turn
from kvarena.framework.workloads.tokens import IdLog
from kvarena.policies.compression.none import NoCompression
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.prefetch.holes import RecomputeHoles
from kvarena.policies.prefetch.prefix import PrefixCache
from kvarena.policies.routing.single import SingleInstance
from kvarena.policies.scheduling.chunked import Chunked
from kvarena.policies.scheduling.prefill_first import PrefillFirst
from kvarena.policies.scheduling.unified import Unified
from kvarena.policies.truncation.none import NoTruncation
from kvarena.policies.writeback.none import NoWriteback
from kvarena.policies.writeback.on_evict import OnEvict
from kvarena.policies.writeback.write_through import WriteThrough

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyCosts, ToyLinks, ToyWorkload, serve

SHAPE = ModelShape("toy", 4, 256, 4, 4, 64, 1000, 4_000_000, 256_000, 2, 8192)


def simulate(
    workload_knobs: dict[str, object],
    pages: int,
    scheduling: Scheduling,
    prefetch: Prefetch,
    *,
    max_steps: int,
    workload: str = "synthetic_chat",
) -> tuple[KeptRecords, Engine]:
    knobs = yaml.safe_load((files("kvarena.conf") / "hardware" / "h100.yaml").read_text())
    hardware = build(Hardware, knobs, "hardware")
    executor = SimulatedExecutor(SHAPE, hardware, 16, max_steps=max_steps)
    recording, clock, arrivals = KeptRecords(), VirtualClock(), Arrivals()
    store = PageStore(
        16,
        {Tier.DEVICE: pages},
        {Tier.DEVICE: LRU()},
        costs=executor.costs,
        writeback=NoWriteback(),
        leaves_only=not prefetch.holes,
        future=arrivals,
    )
    policies = EnginePolicies(scheduling, prefetch, NoWriteback(), NoTruncation(), NoCompression())
    engine = Engine(executor, store, policies, recording, clock)
    opened = make_workload(workload, workload_knobs, 3, 1000, None, True)
    Session(opened, [engine], SingleInstance(), clock, recording, arrivals=arrivals).run()
    store.check()
    return recording, engine


@pytest.mark.parametrize("scheduling", [Chunked(512, 16), PrefillFirst(), Unified()], ids=lambda policy: policy.name)
@pytest.mark.parametrize("prefetch", [PrefixCache(), RecomputeHoles()], ids=lambda policy: policy.name)
def test_a_stretch_is_its_single_steps(scheduling: Scheduling, prefetch: Prefetch) -> None:
    knobs = {"limit": 30, "rate": 2.0, "think_time_s": 5.0, "max_context": 2048}
    runs = [simulate(knobs, 300, scheduling, prefetch, max_steps=steps) for steps in (1, 1 << 20)]
    (single, engine), (leaping, other) = runs
    assert len(leaping.steps) < len(single.steps) / 3
    assert sum(step.n_steps for step in leaping.steps) == len(single.steps)
    assert engine.store.device.evicted_pages == other.store.device.evicted_pages > 0
    assert engine.suspensions == other.suspensions
    for one, two in zip(single.requests, leaping.requests, strict=True):
        assert (one.request, one.reused_device, one.recomputed) == (two.request, two.reused_device, two.recomputed)
        assert two.completion_s == pytest.approx(one.completion_s, rel=1e-9)
        assert two.first_token_s == pytest.approx(one.first_token_s, rel=1e-9)
        assert sum(tokens for _, tokens in two.token_times) == one.output_tokens


def overlapping(recording: KeptRecords) -> int:
    """Iterations that begin before the one before them has ended."""
    return sum(
        after.start_s < before.start_s + before.duration_s - 1e-12 for before, after in pairwise(recording.steps)
    )


@pytest.mark.parametrize("scheduling", [Chunked(512, 16), PrefillFirst(), Unified()], ids=lambda policy: policy.name)
@pytest.mark.parametrize("max_steps", [1, 1 << 20])
def test_one_iteration_at_a_time_and_times_in_order(scheduling: Scheduling, max_steps: int) -> None:
    knobs = {"limit": 40, "rate": 200.0, "think_time_s": 0.05, "max_context": 4096, "input_scale": 8.0}
    recording, _ = simulate(knobs, 600, scheduling, PrefixCache(), max_steps=max_steps)
    assert overlapping(recording) == 0
    for record in recording.requests:
        times = [time_s for time_s, _ in record.token_times]
        assert record.arrival_s <= record.scheduled_s < record.first_token_s <= record.completion_s
        assert times == sorted(times) and times[-1] == record.completion_s


def test_a_stretch_ends_where_a_reply_brings_the_next_turn_about() -> None:
    """One request decodes for long beside a conversation of short turns: every turn is admitted when it arrives."""
    runs = [
        simulate(
            {"limit": 6, "rate": None, "think_time_s": 0.01, "min_turns": 4, "max_turns": 9, "output_scale": 1.0},
            2000,
            Chunked(),
            PrefixCache(),
            max_steps=steps,
        )[0]
        for steps in (1, 1 << 20)
    ]
    for one, two in zip(*(sorted(run.requests, key=lambda record: record.request) for run in runs), strict=True):
        assert two.scheduled_s == pytest.approx(one.scheduled_s, rel=1e-9)


@pytest.mark.parametrize("scheduling", [PrefillFirst(), Unified()], ids=lambda policy: policy.name)
@pytest.mark.parametrize("prefetch", [PrefixCache(), RecomputeHoles()], ids=lambda policy: policy.name)
def test_whole_prompts_are_computed_whole(scheduling: Scheduling, prefetch: Prefetch) -> None:
    knobs = {"limit": 40, "rate": 50.0, "think_time_s": 0.5, "max_context": 1024}
    recording, engine = simulate(knobs, 200, scheduling, prefetch, max_steps=1)
    assert engine.store.device.evicted_pages
    prompts = sum(step.prefill_tokens > 0 for step in recording.steps)
    assert prompts and partial_prefills(recording) == 0


def partial_prefills(recording: KeptRecords) -> int:
    """Iterations that computed prompt tokens and yet gave a request no token: some prompt was not finished."""
    tokens = sum(record.output_tokens for record in recording.requests)
    given = sum(len(record.token_times) for record in recording.requests)
    admissions = sum(1 + record.suspensions for record in recording.requests)
    decoded = sum(step.decode_tokens for step in recording.steps)
    assert given == tokens
    return admissions - (tokens - decoded)


def test_recomputed_tokens_of_steps_are_those_of_requests() -> None:
    knobs = {"limit": 30, "rate": 50.0, "think_time_s": 0.5, "max_context": 1024}
    recording, engine = simulate(knobs, 150, Chunked(48, 16), PrefixCache(), max_steps=1)
    assert engine.suspensions
    assert sum(step.recompute_tokens for step in recording.steps) >= sum(r.recomputed for r in recording.requests)


def test_a_prompt_that_ends_with_one_token_is_published_at_once() -> None:
    prompt = list(range(9))
    workload = ToyWorkload([[(prompt, 30)], [([*prompt, 1], 2)]], gap_s=0.001)
    run = serve(workload, 32, 3, eviction=LRU(), prefetch=PrefixCache(), scheduling=Chunked(8))
    first, second = sorted(run.recording.requests, key=lambda record: record.conversation)
    assert second.completion_s < first.completion_s
    assert second.reused_device == 9


def test_overlapping_turns_before_a_closed_one() -> None:
    """Two turns with their own contexts and times, and one that waits for both."""
    logs = [IdLog(np.arange(size, dtype=np.int32)) for size in (4, 9)]
    turns = (
        Turn(4, 20, arrival_s=0.0, log=logs[0]),
        Turn(5, 3, arrival_s=0.01, log=logs[1], history_tokens=4),
        Turn(2, 2, think_s=0.1, prompt_ids=np.array([1, 2], dtype=np.int32)),
    )

    class Mixed(ToyWorkload):
        def conversations(self) -> Iterable[Conversation]:
            yield Conversation(0, 0.0, turns)

    run = serve(Mixed([[]]), 32, 4, eviction=LRU(), prefetch=PrefixCache(), scheduling=Chunked())
    done = {record.turn: record for record in run.recording.requests}
    assert done[2].arrival_s == pytest.approx(max(done[0].completion_s, done[1].completion_s) + 0.1)


def test_belady_keeps_what_a_waiting_turn_needs() -> None:
    arrivals = Arrivals({0: 1000.0, 1: 5.0})
    runs = [Run(None, np.arange(1), 0, 4, conversation, 0) for conversation in (0, 1)]
    assert arrivals.next_use(runs[0]) > arrivals.next_use(runs[1])
    arrivals.open_turns[0] += 1
    assert arrivals.next_use(runs[0]) < arrivals.next_use(runs[1])


def test_the_same_seed_gives_the_same_run() -> None:
    knobs = {"limit": 12, "rate": 2.0}
    first, second = (simulate(knobs, 200, Chunked(), PrefixCache(), max_steps=1 << 20)[0] for _ in range(2))
    assert first.requests == second.requests
    assert first.steps == second.steps


def test_turns_wait_for_the_reply_and_the_user() -> None:
    workload = ToyWorkload([[([1, 2], 3), ([4], 2), ([5], 1)]], think_s=0.5)
    run = serve(workload, 16, 2, eviction=LRU(), prefetch=PrefixCache(), scheduling=Chunked())
    records = run.recording.requests
    for before, after in pairwise(records):
        assert after.arrival_s == pytest.approx(before.completion_s + 0.5)
    assert [record.history_tokens for record in records] == [0, 5, 8]
    assert [record.reusable_tokens for record in records] == [0, 5, 8]


def test_a_barrier_lets_all_turns_start_together() -> None:
    workload = ToyWorkload([[([1], 5), ([2], 1)], [([3], 1), ([4], 1)], [([5], 2)]], gap_s=0.0, barrier=True)
    run = serve(workload, 32, 2, eviction=LRU(), prefetch=PrefixCache(), scheduling=Chunked())
    second = {record.arrival_s for record in run.recording.requests if record.turn == 1}
    first = max(record.completion_s for record in run.recording.requests if record.turn == 0)
    assert second == {first}


def test_a_request_that_never_fits_fails_with_its_followers_and_the_rest_goes_on() -> None:
    workload = ToyWorkload([[([1] * 50, 2), ([1], 1)], [([2, 3], 2)]])
    run = serve(workload, 8, 2, eviction=LRU(), prefetch=PrefixCache(), scheduling=Chunked())
    status = {(record.conversation, record.turn): record.status for record in run.recording.requests}
    assert "52 tokens" in status[0, 0] and status[0, 0].startswith("failed")
    assert status[0, 1].startswith("skipped") and status[1, 0] == "ok"


def test_equal_prompts_at_once_are_computed_once() -> None:
    prompt = list(range(40))
    workload = ToyWorkload([[(prompt, 1)] for _ in range(4)], gap_s=0.0)
    run = serve(workload, 64, 4, eviction=LRU(), prefetch=PrefixCache(), scheduling=Chunked())
    assert run.executor.computed_tokens == 40 + 3 * 4
    assert run.recording.outputs() == workload.expected()


def test_decisions_do_not_depend_on_the_unseen_future() -> None:
    """Up to the moment in which the futures part, a run with longer later replies is the same run."""
    rng = np.random.default_rng(0)
    turns = [[([int(token) for token in rng.integers(0, 9, 6)], 4) for _ in range(3)] for _ in range(6)]
    other = [[*conversation[:2], (conversation[2][0], 9)] for conversation in turns]
    parts = [
        serve(ToyWorkload(case), 14, 3, eviction=LRU(), prefetch=PrefixCache(), scheduling=Chunked(16)).recording
        for case in (turns, other)
    ]
    parting = min(record.token_times[3][0] for record in parts[0].requests if record.turn == 2)
    before = [[step for step in part.steps if step.start_s + step.duration_s < parting] for part in parts]
    assert before[0] == before[1] and len(before[0]) > 10


def test_the_stores_policies_see_the_engines_queue() -> None:
    """An empty queue is false: it must not be taken for none."""
    queue = WaitingQueue()
    store = PageStore(1, {Tier.DEVICE: 4}, {Tier.DEVICE: LRU()}, costs=ToyCosts(), writeback=NoWriteback(), queue=queue)
    assert store.device.queue.position(3) is None
    record = RequestRecord(0, 3, 0, 0.0, 1, 0, 0, 1)
    queue.add(Request(0, 3, 0, 0.0, 0, 1, 1, IdLog(), record))
    assert store.device.queue.position(3) == 0


def test_requests_that_load_count_as_running() -> None:
    workload = ToyWorkload([[([c, 2, 3, 4], 4), ([c, 5], 4)] for c in range(12)], 0.0, 0.0)
    most = 0

    class Watched(Chunked):
        def plan(self, view: Any) -> Plan:
            nonlocal most
            most = max(most, len(view.running) + view.loading)
            return super().plan(view)

    run = serve(
        workload,
        14,
        1,
        eviction=LRU(),
        prefetch=PrefixCache(loading="before"),
        scheduling=Watched(max_running=2),
        writeback=WriteThrough(),
        below={Tier.HOST: 200},
    )
    assert run.recording.outputs() == workload.expected()
    assert sum(record.reused_host for record in run.recording.requests) > 20 and most == 2


def test_what_a_disk_damaged_is_no_hit() -> None:
    class NothingReadsBack(ToyLinks):
        def _perform(self, transfer: Transfer) -> None:
            self.fault_rate = float(transfer.move.source is Tier.DISK)
            super()._perform(transfer)

    workload = ToyWorkload([[([c, 2, 3, 4], 4), ([c, 5], 4)] for c in range(6)], 5.0, 0.0)
    slots = {tier: np.full((pages, 1), -1, dtype=np.int64) for tier, pages in ((Tier.DEVICE, 15), (Tier.DISK, 200))}
    run = serve(
        workload,
        15,
        1,
        links=NothingReadsBack(slots),
        eviction=LRU(),
        prefetch=RecomputeHoles(),
        scheduling=Chunked(),
        writeback=OnEvict(),
        below={Tier.DISK: 200},
    )
    assert run.recording.outputs() == workload.expected()
    assert run.links is not None and run.links.faults > 10
    assert sum(record.reused_disk for record in run.recording.requests) == 0
