"""Layers that share K/V on a real model: pages of fewer layers go to host and disk and come back as they were."""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvarena.framework.execution.disk import DiskPages
from kvarena.framework.execution.models import LoadedModel, load_model
from kvarena.framework.execution.torch_executor import TorchExecutor
from kvarena.framework.policy import Tier
from kvarena.policies.scheduling.unified import Unified

sys.path.insert(0, str(Path(__file__).parent))
from real_tiers import serve_for_real, stateless
from small_model import KNOBS
from test_lossless import make
from test_lossless_model_tiers import make_sizes, make_workload
from toy import ToyWorkload

SYSTEMS = {
    "pensieve": {"eviction": "retention", "prefetch": "holes", "writeback": "ahead_of_time"},
    "cachedattention": {"eviction": "lookahead", "prefetch": "layerwise", "writeback": "save_layerwise"},
    "vllm": {"eviction": "lru", "prefetch": "prefix", "writeback": "write_through"},
}
PAGE_SIZE = 4
SHARING = {1: 0, 3: 2}
seen: Counter[str] = Counter()


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(KNOBS | {"num_layers": 4}, "cpu", 1)


def hugging_face(model: LoadedModel, workload: ToyWorkload) -> list[int]:
    """The first reply of the first conversation, by its own model with K and V projections put in place by hooks."""
    import copy

    module: Any = copy.deepcopy(model.module)
    module.set_attn_implementation("eager")
    kept: dict[tuple[int, str], torch.Tensor] = {}
    for layer, block in enumerate(module.model.layers):
        for name in ("k_proj", "v_proj"):

            def replaced(_: Any, __: Any, out: torch.Tensor, layer: int = layer, name: str = name) -> torch.Tensor:
                kept[layer, name] = out if layer not in SHARING else kept[SHARING[layer], name]
                return kept[layer, name]

            getattr(block.self_attn, name).register_forward_hook(replaced)
    (prompt, count), ids = workload.turns[0][0], list(workload.turns[0][0][0])
    for _ in range(count):
        with torch.inference_mode():
            ids.append(int(module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("system", SYSTEMS)
def test_pages_survive_the_tiers(model: LoadedModel, tmp_path: Path, system: str) -> None:
    rng = random.Random(system)
    workload = make_workload(rng)
    expected = stateless(model, workload, PAGE_SIZE, SHARING)
    assert expected != stateless(model, workload, PAGE_SIZE), "sharing changes nothing here"
    assert expected[0, 0] == hugging_face(model, workload)
    disk_pages = 60
    pages = {Tier.HOST: 12, **make_sizes(rng, workload, PAGE_SIZE), Tier.DISK: disk_pages}
    page_bytes = PAGE_SIZE * TorchExecutor(model, 1, PAGE_SIZE, sharing=SHARING).shape.kv_bytes_per_token
    found = serve_for_real(
        *(model, workload, pages, PAGE_SIZE),
        disk=DiskPages.open(tmp_path, disk_pages, page_bytes, "shared", persist=False),
        seed=0,
        sharing=SHARING,
        decoupled=system == "cachedattention",
        scheduling=replace(Unified(), max_running=4),
        **{family: make(family, name) for family, name in SYSTEMS[system].items()},
    )
    seen.update(found.moves)
    seen["reused"] += sum(record.reused_device for record in found.run.recording.requests)
    assert found.outputs == expected
    assert not found.run.engine.narrowed.active


def test_all_of_it_happened() -> None:
    links = ("device->host", "host->device", "disk->device")
    assert min(seen[name] for name in (*links, "reused")) > 5, seen
