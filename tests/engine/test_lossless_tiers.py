"""Lossless stays lossless with real data in all tiers, from ample to hardly fitting, with faults on the disk."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kvarena.framework.policy import Scheduling, Tier
from kvarena.framework.registry import Registry
from kvarena.policies.prefetch.layerwise import LayerwisePreloading

sys.path.insert(0, str(Path(__file__).parent))
from test_lossless import SCHEDULERS, lossless, make, workloads
from toy import ToyWorkload, serve

REGISTRY = Registry.discover()
PREFETCHERS = [name for name in lossless("prefetch") if make("prefetch", name).reuses != "nothing"]
WRITEBACKS = [name for name in lossless("writeback") if name != "none"]
seen: Counter[str] = Counter()


@st.composite
def tiers(draw: st.DrawFn) -> tuple[int, dict[Tier, int]]:
    """How many times too small the device is, and pages of the tiers below: from one to plenty."""
    host, disk = draw(st.integers(0, 60)), draw(st.integers(0, 60))
    below = {tier: pages for tier, pages in ((Tier.HOST, host), (Tier.DISK, disk)) if pages}
    return draw(st.sampled_from([10, 10, 3])), below or {Tier.HOST: 1}


def check_tokens(run: Any, workload: ToyWorkload) -> None:
    assert run.recording.outputs() == workload.expected()
    for record in run.recording.requests:
        reused = record.reused_device + record.reused_host + record.reused_disk + record.reused_remote
        assert reused + record.recomputed + record.dropped == record.reusable_tokens
    store = run.engine.store
    assert all(store.available(tier) == pool.capacity for tier, pool in store.pools.items()), "a page is still held"


@pytest.mark.parametrize("prefetch", [*PREFETCHERS, "layerwise b1", "layerwise b2"])
@pytest.mark.parametrize("writeback", WRITEBACKS)
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(
    workload=workloads(),
    eviction=st.sampled_from(lossless("eviction")),
    scheduling=st.sampled_from(SCHEDULERS),
    page_size=st.integers(1, 6),
    sizes=tiers(),
    seed=st.integers(0, 1 << 16),
    fault_rate=st.sampled_from([0.0, 0.0, 0.3]),
)
def test_tokens_do_not_depend_on_tiers(
    prefetch: str,
    writeback: str,
    workload: ToyWorkload,
    eviction: str,
    scheduling: Scheduling,
    page_size: int,
    sizes: tuple[int, dict[Tier, int]],
    seed: int,
    fault_rate: float,
) -> None:
    too_small, below = sizes
    pages = max(-(-workload.longest() // page_size) + 1, workload.total() // (too_small * page_size))
    run = serve(
        workload,
        pages,
        page_size,
        eviction=make("eviction", eviction),
        prefetch=LayerwisePreloading(buffer_layers=int(prefetch[-1]))
        if " b" in prefetch
        else make("prefetch", prefetch),
        scheduling=scheduling,
        writeback=make("writeback", writeback),
        below=below,
        seed=seed,
        fault_rate=fault_rate,
    )
    check_tokens(run, workload)
    assert not len(run.engine._early)
    seen["early"] += sum(move.layers is not None for move in run.links.carried) if run.links else 0
    seen.update(run.links.moves if run.links else {})
    seen["faults"] += run.links.faults if run.links else 0
    seen["suspended"] += run.engine.suspensions
    seen["stalls"] += run.executor.stalls


def test_all_links_were_used() -> None:
    for link in ("device->host", "host->device", "host->disk", "device->disk", "disk->device"):
        assert seen[link] > 50, seen
    assert min(seen["faults"], seen["suspended"], seen["stalls"], seen["early"]) > 20, seen
