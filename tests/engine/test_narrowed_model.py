"""Token-level policies on a real model: what is kept survives host, disk and suspensions bit for bit."""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from kvarena.framework.execution.models import LoadedModel, load_model
from kvarena.framework.execution.torch_executor import TorchExecutor
from kvarena.framework.metrics.decisions import DecisionLog
from kvarena.framework.policy import CacheShape, Tier, TokenTruncation
from kvarena.policies.scheduling.unified import Unified

sys.path.insert(0, str(Path(__file__).parent))
from real_tiers import open_disk, serve_for_real
from small_model import KNOBS
from test_lossless import REGISTRY, make
from test_lossless_model_tiers import make_sizes, make_workload
from toy import Run, ToyWorkload, serve

PAGE_SIZE = 4
ROOM = {"budget_ratio": None, "budget_tokens": 12}
POLICIES = {
    "h2o": {"budget_ratio": 0.5, "between_chunks": False},
    "tova": ROOM,
    "snapkv": ROOM | {"window": 4},
    "pyramidkv": ROOM | {"window": 4},
    "window": ROOM,
}
seen: Counter[str] = Counter()


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(KNOBS, "cpu", 1)


def build(name: str, model: LoadedModel) -> TokenTruncation:
    policy = REGISTRY.build("truncation", name, POLICIES[name])
    shape = model.shape
    policy.bind(CacheShape(shape.num_layers, shape.num_heads, shape.num_kv_heads, 2 * shape.head_dim * 4))
    assert isinstance(policy, TokenTruncation)
    return policy


class Chosen:
    """Keeps the logits."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def attended(self, layer: int, segments: Any, query: Tensor, out: Tensor) -> None: ...

    def chose(self, segments: Any, logits: Tensor) -> None:
        self.logits.append(logits.clone())


def alone(model: LoadedModel, workload: ToyWorkload, policy: TokenTruncation, chosen: Chosen | None = None) -> Run:
    """With room for everything on the device."""
    pages = -(-workload.total() // PAGE_SIZE) + len(workload) * 4
    policies: dict[str, Any] = {"eviction": make("eviction", "lru"), "prefetch": make("prefetch", "holes")}
    executor = TorchExecutor(model, pages, PAGE_SIZE, truncation=policy)
    executor.listener = chosen
    return serve(workload, pages, PAGE_SIZE, **policies, scheduling=Unified(), truncation=policy, executor=executor)


@pytest.mark.parametrize(("name", "turn"), list(product(POLICIES, range(3))))
def test_what_is_kept_survives_the_tiers(model: LoadedModel, tmp_path: Path, name: str, turn: int) -> None:
    rng = random.Random(f"{name} {turn}")
    workload = make_workload(rng)
    expected = alone(model, workload, build(name, model))
    assert not expected.engine.narrowed.begun_anew
    pages = make_sizes(rng, workload, PAGE_SIZE)
    disk_pages = pages.get(Tier.DISK)
    disk = open_disk(model, tmp_path, disk_pages, PAGE_SIZE) if disk_pages else None
    prefetch = rng.choice(["holes", "layerwise", "prefix"])
    writeback = rng.choice(["on_evict", "write_through", "save_layerwise"])
    found = serve_for_real(
        *(model, workload, pages, PAGE_SIZE),
        disk=disk,
        seed=turn,
        eviction=make("eviction", rng.choice(["lru", "fifo", "retention"])),
        prefetch=make("prefetch", prefetch),
        scheduling=replace(Unified(), max_running=4),
        writeback=make("writeback", writeback),
        truncation=build(name, model),
    )
    narrowed = found.run.engine.narrowed
    seen["pages freed"] += narrowed.freed_pages
    seen.update({link: count for link, count in found.moves.items()})
    if not narrowed.begun_anew:
        seen["kept throughout"] += 1
        assert found.outputs == expected.recording.outputs(), (prefetch, writeback, pages)
    seen["begun anew"] += narrowed.begun_anew


@pytest.mark.parametrize("name", POLICIES)
def test_logged_decisions_give_the_same_logits(model: LoadedModel, tmp_path: Path, name: str) -> None:
    # One request at a time, however slow the machine: steps take the time that they really take.
    workload = ToyWorkload([[(list(range(30)), 8), ([5, 6], 4)], [([9] * 17, 6)]], think_s=1e3, gap_s=1e5)
    log, path = DecisionLog(build(name, model)), tmp_path / "decisions.parquet"
    first, again, freely = Chosen(), Chosen(), Chosen()
    alone(model, workload, log, first)
    log.write(path)
    alone(model, workload, REGISTRY.build("truncation", "logged", {"path": str(path)}), again)
    alone(model, workload, REGISTRY.build("truncation", "random", {"budget_ratio": 1.0}), freely)
    assert [logits.tolist() for logits in first.logits] == [logits.tolist() for logits in again.logits]
    assert [logits.tolist() for logits in first.logits] != [logits.tolist() for logits in freely.logits]


def test_all_of_it_happened() -> None:
    names = ("pages freed", "device->host", "host->device", "kept throughout", "begun anew")
    assert min(seen[name] for name in names) > 2, seen
