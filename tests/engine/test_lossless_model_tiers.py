"""Lossless stays lossless on a real model whose pages go to a host pool and to real files, and come back.

``KVARENA_ROUNDS=20`` tries more.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from dataclasses import replace
from itertools import count, product
from pathlib import Path

import pytest

from kvarena.framework.execution.models import LoadedModel, load_model
from kvarena.framework.policy import Prefetch, Scheduling, Tier
from kvarena.policies.scheduling.chunked import Chunked
from kvarena.policies.scheduling.longest_prefix import LongestPrefix
from kvarena.policies.scheduling.prefill_first import PrefillFirst
from kvarena.policies.scheduling.unified import Unified

sys.path.insert(0, str(Path(__file__).parent))
from real_tiers import Outcome, open_disk, serve_for_real, stateless
from small_model import KNOBS
from test_lossless import lossless, make
from toy import ToyWorkload

ROUNDS = int(os.environ.get("KVARENA_ROUNDS", "1"))
SCHEDULERS: list[Scheduling] = [Chunked(24, 4), PrefillFirst(64, 4), Unified(64, 6), LongestPrefix(64, 4)]
PREFETCHERS = [name for name in lossless("prefetch") if make("prefetch", name).reuses != "nothing"]
WRITEBACKS = [name for name in lossless("writeback") if name != "none"]
EVICTIONS = lossless("eviction")
LOADINGS = ("layers", "blocking", "before")
SMALL_KNOBS = {"hicache": {"prefetch_threshold": 4, "load_back_tokens": 4}}
seen: Counter[str] = Counter()
runs = count()


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(KNOBS, "cpu", 1)


def make_prefetch(name: str, loading: str) -> Prefetch:
    policy: Prefetch = make("prefetch", name)
    knobs = {"loading": loading} | SMALL_KNOBS.get(name, {})
    return replace(policy, **{knob: value for knob, value in knobs.items() if hasattr(policy, knob)})  # type: ignore[type-var]


def make_workload(rng: random.Random) -> ToyWorkload:
    shared = [rng.randrange(97) for _ in range(rng.choice([0, 5, 16]))]

    def turn(first: bool) -> tuple[list[int], int]:
        prompt = [rng.randrange(97) for _ in range(rng.randint(1, 20))]
        return (shared if first else []) + prompt, rng.randint(1, 6)

    turns = [[turn(number == 0) for number in range(rng.randint(2, 3))] for _ in range(rng.randint(5, 7))]
    return ToyWorkload(turns, think_s=rng.choice([0.0, 0.01]), gap_s=rng.choice([0.0, 0.003]))


def make_sizes(rng: random.Random, workload: ToyWorkload, page_size: int) -> dict[Tier, int]:
    """From what hardly fits to what holds all, of one tier or two below the device."""
    all_pages = -(-workload.total() // page_size)
    longest = -(-workload.longest() // page_size) + 1
    device = max(longest, all_pages // rng.choice([20, 10, 3]))
    host, disk = rng.choice([(1, 0), (1, 1), (6, 2), (0, 1), (0, 6), (8, 1), (3, 1), (2, 1)])
    below = {Tier.HOST: host and max(1, all_pages // host), Tier.DISK: disk and max(1, all_pages // disk)}
    if rng.random() < 0.2:
        below = {tier: pages and rng.randint(1, 3) for tier, pages in below.items()}
    return {Tier.DEVICE: device, **{tier: pages for tier, pages in below.items() if pages}}


def check(found: Outcome, pages: dict[Tier, int]) -> None:
    # A page that was overwritten while somebody wanted it is a miss, by its key; nothing else may go wrong.
    assert set(found.faults) <= {"key"}, found.problems
    assert len(found.problems) == len(found.faults), found.problems
    for record in found.run.recording.requests:
        reused = record.reused_device + record.reused_host + record.reused_disk + record.reused_remote
        assert reused + record.recomputed + record.dropped == record.reusable_tokens
    seen.update(found.moves)
    seen["stalls"] += found.stall_s > 0.0
    seen["suspended"] += found.run.engine.suspensions
    seen["tiers"] += len(pages) == 3
    for tier, pool in found.run.engine.store.pools.items():
        seen[f"evicted from {tier.name.lower()}"] += pool.evicted_pages


@pytest.mark.parametrize(("prefetch", "writeback"), list(product(PREFETCHERS, WRITEBACKS)))
def test_tokens_equal_stateless_serving(model: LoadedModel, tmp_path: Path, prefetch: str, writeback: str) -> None:
    for turn in range(ROUNDS):
        rng = random.Random(f"{prefetch} {writeback} {turn}")
        workload, page_size = make_workload(rng), rng.choice([1, 4, 5])
        expected = stateless(model, workload, page_size)
        for scheduling in SCHEDULERS:
            number, pages = next(runs), make_sizes(rng, workload, page_size)
            eviction, loading = EVICTIONS[number % len(EVICTIONS)], LOADINGS[number % len(LOADINGS)]
            options = {"slab_bytes": rng.choice([None, 1 << 14]), "persist": rng.random() < 0.5}
            disk_pages = pages.get(Tier.DISK)
            disk = open_disk(model, tmp_path / f"{number}", disk_pages, page_size, **options) if disk_pages else None
            found = serve_for_real(
                *(model, workload, pages, page_size),
                disk=disk,
                seed=number,
                eviction=make("eviction", eviction),
                prefetch=make_prefetch(prefetch, loading),
                scheduling=scheduling,
                writeback=make("writeback", writeback),
            )
            assert found.outputs == expected, (turn, scheduling, eviction, loading, page_size, pages)
            check(found, pages)


def test_all_of_it_happened() -> None:
    print(dict(seen))
    assert {policy.name for policy in SCHEDULERS} == set(lossless("scheduling"))
    assert next(runs) >= 4 * len(EVICTIONS)
    for link in ("device->host", "host->device", "host->disk", "device->disk", "disk->device", "disk->host"):
        assert seen[link] > 50, seen
