"""Simulated and torch backends share every line but executor, links and clock: where their times are equal, so is
everything that they decide. The torch backend runs on the simulator's time (see ``paced``)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from kvarena.framework.backends import Backend, open_backend
from kvarena.framework.composition import Parts
from kvarena.framework.execution.simulated import SimulatedBackend
from kvarena.framework.metrics import KeptRecords
from kvarena.framework.metrics.records import RequestRecord
from kvarena.framework.opening import open_workload
from kvarena.framework.serve import Server

sys.path.insert(0, str(Path(__file__).parent))
from paced import paced

WORKLOAD = (
    *("workload=synthetic_chat", "workload.limit=10", "workload.rate=60", "workload.think_time_s=0.05"),
    *("workload.min_turns=3", "workload.max_turns=5", "workload.output_scale=0.1", "workload.input_scale=2"),
    *("workload.max_context=900", "memory.device_tokens=1024", "workload.system_prompt_tokens=40", "seed=3"),
)
TIERS = {
    "one tier": ("memory.host_tokens=0",),
    "host": ("memory.host_tokens=2048",),
    "host and disk": ("memory.host_tokens=640", "memory.disk_tokens=8192"),
}
CASES = [
    *((system, "one tier") for system in ("vllm_stateless", "vllm", "pensieve_gpu")),
    *(
        (system, tiers)
        for system in ("vllm_offload", "pensieve", "cachedattention")
        for tiers in ("host", "host and disk")
    ),
    ("sglang_hicache", "host and disk"),
]
Make = Callable[..., Parts]


def simulation(parts: Parts, real: Backend) -> Parts:
    """``parts`` on the virtual clock, a step at a time."""
    backend = SimulatedBackend(max_steps=1, decoupled=parts.backend.decoupled)
    return replace(parts, backend=backend, shape=real.shape, model=None)


def open_simulation(parts: Parts) -> Backend:
    """Told of every decoding sequence, as a real executor is, so that times are equal to the last bit."""
    backend = open_backend(parts)
    backend.executor.sums_decodes = False
    return backend


def served(parts: Parts, backend: Backend) -> tuple[KeptRecords, Server]:
    rows = KeptRecords()
    server = Server(parts, backend, open_workload(parts, backend.shape.vocab_size))
    server.run(rows, lambda stage: None)
    server.store.check()
    backend.finish_copies()
    return rows, server


def decisions(rows: KeptRecords, server: Server) -> dict[str, Any]:
    """Everything that a run records but what was measured or generated."""
    names = [field.name for field in fields(RequestRecord) if field.name not in ("output_ids", "token_times")]
    requests = [{name: getattr(each, name) for name in names} for each in rows.requests]
    steps = [{k: v for k, v in asdict(each).items() if k != "overhead_s"} for each in rows.steps]
    totals = server.totals()
    return {
        "requests": requests,
        "tokens": [list(each.token_times) for each in rows.requests],
        "steps": steps,
        "transfers": [asdict(each) for each in rows.transfers],
        "evicted": totals.evicted_pages,
        "peak": totals.peak_pages,
    }


@pytest.mark.parametrize(("system", "tiers"), CASES, ids=lambda name: str(name).replace(" ", "_"))
def test_the_torch_backend_on_simulated_time_decides_as_the_simulator(
    system: str, tiers: str, parts: Make, tmp_path: Path
) -> None:
    real_parts = parts(f"system={system}", *WORKLOAD, *TIERS[tiers])
    real = open_backend(real_parts, tmp_path)
    try:
        sim_parts = simulation(real_parts, real)
        pacer = paced(real, open_simulation(sim_parts))
        # the torch backend knows how long the model's contexts may be; nothing here comes near
        computed, computing = served(real_parts, replace(pacer, max_tokens=None))
    finally:
        real.close()
    simulated, simulating = served(sim_parts, open_simulation(sim_parts))
    assert decisions(computed, computing) == decisions(simulated, simulating)
    assert all(each.status == "ok" and len(each.output_ids) == each.output_tokens for each in computed.requests)
    if system != "vllm_stateless":
        assert sum(each.reused_device + each.reused_host + each.reused_disk for each in computed.requests) > 0
    if tiers != "one tier":
        assert {each.link for each in computed.transfers} >= {"host->device", "device->host"}
    elif system != "vllm_stateless":
        assert computing.totals().evicted_pages["device"] > 0  # memory is short enough for decisions to matter


def test_what_it_computes_on_simulated_time_is_what_it_computes_on_its_own(parts: Make, tmp_path: Path) -> None:
    """The pages that the paced links move are the right ones: greedy tokens are those of a run that keeps nothing."""
    outputs = []
    for system in ("vllm_stateless", "pensieve"):
        own = parts(f"system={system}", *WORKLOAD, *TIERS["host"])
        real = open_backend(own, tmp_path / system)
        try:
            rows, _ = served(own, replace(paced(real, open_simulation(simulation(own, real))), max_tokens=None))
        finally:
            real.close()
        outputs.append({(each.conversation, each.turn): each.output_ids for each in rows.requests})
    assert outputs[0] == outputs[1]
