"""What is recorded of a real model: the attention it truly has, and nothing that depends on how it was served."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kvarena.framework.execution.contract import Batch, Narrowing, Segment
from kvarena.framework.execution.models import LoadedModel, load_model
from kvarena.framework.execution.torch_executor import TorchExecutor
from kvarena.framework.policy import CacheShape, TokenTruncation
from kvarena.framework.quality.recording import Recording, Wanted, full_attention
from kvarena.framework.quality.watching import foresee, holding, watch
from kvarena.framework.registry import Registry
from kvarena.framework.workloads.tokens import IdLog

KNOBS: Mapping[str, Any] = {
    "name": "small", "kind": "random", "architecture": "llama", "vocab_size": 97, "hidden_size": 32,
    "intermediate_size": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "max_positions": 256,
    "tied_embeddings": False, "dtype": "float32", "config": {},
}  # fmt: skip
PAGE, TOKENS = 4, 23
IDS = np.arange(TOKENS, dtype=np.int32) * 7 % 97


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(KNOBS, "cpu", 1)


@pytest.fixture(scope="module")
def truth(model: LoadedModel) -> tuple[Tensor, Tensor]:
    """The model's own attention [L, H, T, T] and logits [T, V], computed by transformers."""
    module = copy.deepcopy(model.module)
    module.set_attn_implementation("eager")
    with torch.inference_mode():
        out = module(input_ids=torch.from_numpy(IDS).long()[None], output_attentions=True)
    return torch.stack([layer[0] for layer in out.attentions]), out.logits[0]


def segment(start: int, length: int, **given: Any) -> Segment:
    table = np.arange(8, dtype=np.int32)[::-1].copy()
    return Segment(3, IdLog(IDS), start, length, table, sample=True, **given)


def heard(model: LoadedModel, chunks: list[tuple[int, int]], wanted: Wanted) -> Recording:
    executor, recording = TorchExecutor(model, 8, PAGE), Recording(wanted)
    with watch(executor, recording):
        for start, length in chunks:
            executor.run(Batch([segment(start, length)]))
    assert executor.listener is None
    return recording


@pytest.mark.parametrize("chunks", [[(0, TOKENS)], [(0, 9), (9, 12), (21, 1), (22, 1)]], ids=["whole", "chunks"])
def test_all_the_attention_of_a_context(
    model: LoadedModel, truth: tuple[Tensor, Tensor], chunks: list[tuple[int, int]]
) -> None:
    recording = heard(model, chunks, Wanted(rows=True, top_keys=5))
    whole = full_attention(recording.rows[3], TOKENS)
    torch.testing.assert_close(whole, truth[0], atol=1e-5, rtol=1e-4)
    last = recording.steps[3][-1]
    assert last.position == TOKENS - 1
    torch.testing.assert_close(last.logits, truth[1][-1], atol=1e-4, rtol=1e-4)
    assert last.top_keys is not None
    wanted = truth[0][:, :, -1].topk(5, dim=-1).indices
    assert torch.equal(last.top_keys.sort(-1).values, wanted.sort(-1).values)


def policy(model: LoadedModel, name: str, **knobs: Any) -> TokenTruncation:
    built = Registry.discover().build("truncation", name, knobs)
    assert isinstance(built, TokenTruncation)
    shape = model.shape
    built.bind(CacheShape(shape.num_layers, shape.num_heads, shape.num_kv_heads, 2 * shape.head_dim * 4))
    return built


def narrowing(tokens: int, stage: Any) -> Narrowing:
    return Narrowing(1, 5, stage, tokens)


def test_what_a_narrowed_context_holds_is_counted_with_what_its_policy_remembers(model: LoadedModel) -> None:
    knobs = {"budget_tokens": 8, "budget_ratio": None}
    executor = TorchExecutor(model, 8, PAGE, truncation=policy(model, "h2o", **knobs))
    first = segment(0, 20, narrowing=narrowing(20, "prompt"))
    before = holding(executor, first)
    assert (before.positions, before.kv_bytes) == (None, 20 * model.shape.kv_bytes_per_token)
    assert executor.run(Batch([first])).slots == {1: 8}
    after = holding(executor, segment(8, 2, narrowing=narrowing(22, "prompt")))
    assert after.positions is not None
    assert after.positions.shape == (2, 2, 10)
    assert after.positions[..., -2:].tolist() == [[[20, 21]] * 2] * 2
    assert after.kv_bytes == 10 * model.shape.kv_bytes_per_token
    assert after.state_bytes == 8 * 2 * 2 * 8 + 4 * 2 * 4 * 8  # places of each plane, scores of each query head


def test_an_oracle_is_told_the_attention_of_its_conversation(model: LoadedModel, truth: tuple[Tensor, Tensor]) -> None:
    executor = TorchExecutor(model, 8, PAGE, truncation=policy(model, "future", budget_tokens=6, budget_ratio=None))
    foresee(executor, {5: truth[0]})
    executor.run(Batch([segment(0, 20, narrowing=narrowing(20, "prompt"))]))
    memory = executor.memory(1)
    assert memory is not None
    later = truth[0][:, :, 20:, :20].sum(2).unflatten(1, (2, 2)).mean(2)
    assert torch.equal(memory.positions.sort(-1).values, later.topk(6, dim=-1).indices.sort(-1).values)
