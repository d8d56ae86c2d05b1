"""Contexts that outgrow the window: what is dropped, what stays in use, and what the tokens are then."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kvarena.framework.execution.models import LoadedModel, load_model
from kvarena.framework.execution.torch_executor import TorchExecutor
from kvarena.framework.policy import Tier
from kvarena.framework.workloads.shifted import ShiftedLog
from kvarena.framework.workloads.tokens import IdLog
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.prefetch.holes import RecomputeHoles
from kvarena.policies.prefetch.none import NoReuse
from kvarena.policies.scheduling.chunked import Chunked
from kvarena.policies.truncation.oldest_half import OldestHalf

sys.path.insert(0, str(Path(__file__).parent))
from small_model import KNOBS
from test_lossless import make, workloads
from toy import Run, ToyWorkload, next_token, serve

seen: Counter[str] = Counter()


def cut_outputs(
    workload: ToyWorkload, window: int, page_size: int, ratio: float = 0.5
) -> dict[tuple[int, int], list[int]]:
    """What a model without any cache says to contexts whose oldest half is dropped, in whole pages, at overflow."""
    outputs = {}
    for index, turns in enumerate(workload.turns):
        context: list[int] = []
        for turn, (prompt, tokens) in enumerate(turns):
            wanted = OldestHalf(ratio).first_kept(len(context), len(context) + len(prompt) + tokens, window)
            context = context[min(-(-wanted // page_size), len(context) // page_size) * page_size :]
            context += prompt
            for _ in range(tokens):
                context.append(next_token(context))
            outputs[index, turn] = context[len(context) - tokens :]
    return outputs


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("prefetch", ["none", "prefix", "holes", "layerwise"])
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(
    workload=workloads(),
    page_size=st.integers(1, 4),
    writeback=st.sampled_from(["save_layerwise", "on_evict", "ahead_of_time", "write_through"]),
    eviction=st.sampled_from(["lru", "lookahead", "retention", "arc"]),
    host=st.integers(1, 40),
    disk=st.integers(0, 40),
    seed=st.integers(0, 1 << 16),
)
def test_a_model_that_knows_no_positions_sees_the_rest_of_the_context(
    prefetch: str,
    keeps: bool,
    workload: ToyWorkload,
    page_size: int,
    writeback: str,
    eviction: str,
    host: int,
    disk: int,
    seed: int,
) -> None:
    """The toy model's K/V are its tokens, so that kept and recomputed K/V say the same."""
    window = max(17 + 3 * page_size, max(len(p) + n for turns in workload.turns for p, n in turns) + page_size)
    below = {Tier.HOST: host, Tier.DISK: disk} if disk else {Tier.HOST: host}
    run = serve(
        workload,
        -(-window // page_size) + 8,
        page_size,
        eviction=make("eviction", eviction),
        prefetch=make("prefetch", prefetch),
        scheduling=Chunked(),
        writeback=make("writeback", writeback),
        below=below,
        truncation=OldestHalf(keeps_kv=keeps),
        window=window,
        seed=seed,
    )
    served = {(r.conversation, r.turn) for r in run.recording.requests if r.status == "ok"}
    expected = cut_outputs(workload, window, page_size)
    assert {key: run.recording.outputs()[key] for key in served} == {key: expected[key] for key in served}
    dropped_before: Counter[int] = Counter()
    for record in sorted(run.recording.requests, key=lambda record: record.turn):
        reused = record.reused_device + record.reused_host + record.reused_disk
        assert reused + record.recomputed + record.dropped == record.reusable_tokens
        if record.dropped > dropped_before[record.conversation]:
            seen["cut"] += 1
            seen[f"reused {prefetch} {keeps}"] += reused > 0
        dropped_before[record.conversation] = record.dropped


def test_contexts_were_cut_and_what_was_kept_was_reused() -> None:
    assert seen["cut"] > 50, seen
    assert seen["reused holes True"] > seen["reused holes False"], seen


@pytest.mark.parametrize("writeback", ["save_layerwise", "on_evict"])
@pytest.mark.parametrize(("prefetch", "kept"), [("prefix", 8), ("holes", 8), ("layerwise", 8)])
def test_all_that_survives_a_cut_is_reused(prefetch: str, kept: int, writeback: str) -> None:
    """21 tokens after two turns, 20 of them with K/V; a third makes 28: of 24, the oldest 12 go, and 8 are stored."""
    workload = ToyWorkload([[([1, 2, 3, 4, 5, 6, 7], 5), ([8, 9, 1], 6), ([8, 9, 2], 4)]])
    reused = {}
    for keeps in (True, False):
        run = serve(
            workload,
            40,
            2,
            eviction=LRU(),
            prefetch=make("prefetch", prefetch),
            scheduling=Chunked(),
            writeback=make("writeback", writeback),
            below={Tier.HOST: 60},
            truncation=OldestHalf(keeps_kv=keeps),
            window=24,
        )
        last = run.recording.requests[-1]
        assert (last.turn, last.dropped) == (2, 12)
        reused[keeps] = last.reused_device + last.reused_host
    assert reused == {True: kept, False: 0}


def test_a_shifted_log_keeps_the_keys_of_what_was_stored() -> None:
    log = IdLog(np.arange(20, dtype=np.int32))
    keys, fresh = log.page_keys(4, 20), IdLog(np.arange(8, 20, dtype=np.int32)).page_keys(4, 12)
    kept = ShiftedLog(log, 8, 18)
    assert kept.page_keys(4, 12)[:2].tolist() == keys[2:4].tolist()
    assert kept.page_keys(4, 12)[2] not in (keys[4], fresh[2])
    assert kept.tail_key(4, 9) == log.tail_key(4, 17) and kept.tail_key(4, 11) != log.tail_key(4, 19)
    assert not set(ShiftedLog(log, 8, 0).page_keys(4, 12).tolist()) & {*keys.tolist(), *fresh.tolist()}
    again = ShiftedLog(kept, 4, 12)
    assert again.page_keys(4, 8).tolist()[:2] == kept.page_keys(4, 12).tolist()[1:3]
    assert again.ids(0, 3).tolist() == [12, 13, 14] and len(again) == 8
    with pytest.raises(ValueError, match="30 tokens are to be dropped of 20"):
        ShiftedLog(log, 30)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(KNOBS, "cpu", 1)


WORKLOAD = ToyWorkload([[([(7 * i + c) % 97 for i in range(20)], 8)] + [([c + 1, 5, 9], 9)] * 6 for c in range(3)])


def serve_model(model: LoadedModel, *, keeps: bool, decoupled: bool, reuse: bool) -> Run:
    executor = TorchExecutor(model, 64, 4, decoupled=decoupled)
    prefetch = RecomputeHoles() if reuse else NoReuse()
    return serve(
        WORKLOAD,
        64,
        4,
        eviction=LRU(),
        prefetch=prefetch,
        scheduling=Chunked(),
        executor=executor,
        truncation=OldestHalf(keeps_kv=keeps),
        window=48,
    )


def test_positions_must_be_decoupled_for_kept_keys(model: LoadedModel) -> None:
    """Kept K/V with fresh positions stay near to recomputing; with stale positions they do not (section 3.4)."""
    truth = serve_model(model, keeps=False, decoupled=False, reuse=False).recording
    assert sum(record.dropped > 0 for record in truth.requests) >= 6
    recomputed = serve_model(model, keeps=False, decoupled=True, reuse=True).recording
    assert recomputed.outputs() == truth.outputs()
    kept = serve_model(model, keeps=True, decoupled=True, reuse=True).recording
    naive = serve_model(model, keeps=True, decoupled=False, reuse=True).recording
    assert sum(r.reused_device for r in kept.requests) > sum(r.reused_device for r in recomputed.requests)
    before = [key for key in truth.outputs() if key[1] < 2]
    assert all(kept.outputs()[key] == truth.outputs()[key] for key in before), "nothing was cut before"
    assert naive.outputs() != kept.outputs()
