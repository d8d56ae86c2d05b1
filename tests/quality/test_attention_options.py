"""The attention that is recorded has the model's own scale, soft cap and window, whatever its head dimension says."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from kvarena.framework.choices import Lossy
from kvarena.framework.execution.contract import Batch, Segment
from kvarena.framework.execution.models import load_model
from kvarena.framework.execution.torch_executor import TorchExecutor
from kvarena.framework.quality.recording import Recording, Wanted, full_attention
from kvarena.framework.quality.watching import check_layers, watch
from kvarena.framework.registry import Registry
from kvarena.framework.workloads.tokens import IdLog

SIZES: Mapping[str, Any] = {
    "name": "small", "kind": "random", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2,
    "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "max_positions": 64, "tied_embeddings": False, "dtype": "float32",
}  # fmt: skip
MODELS = [
    ("gemma2", {"query_pre_attn_scalar": 64, "sliding_window": 7, "attn_logit_softcapping": 2.0}),
    ("granite", {"attention_multiplier": 0.05}),
    ("mistral", {"sliding_window": 5}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
]
PAGE, TOKENS = 4, 19
IDS = np.arange(TOKENS, dtype=np.int32) * 7 % 97


@pytest.mark.parametrize(("architecture", "config"), MODELS, ids=[name for name, _ in MODELS])
def test_recorded_attention_is_what_transformers_computes(architecture: str, config: dict[str, Any]) -> None:
    model = load_model({**SIZES, "architecture": architecture, "config": config}, "cpu", 1)
    plain = copy.deepcopy(model.module)
    plain.set_attn_implementation("eager")
    with torch.inference_mode():
        out = plain(input_ids=torch.from_numpy(IDS).long()[None], output_attentions=True)
    truth = torch.stack([layer[0] for layer in out.attentions])
    executor, recording = TorchExecutor(model, 8, PAGE), Recording(Wanted(rows=True, top_keys=3))
    with watch(executor, recording):
        for start, length in ((0, 9), (9, 9), (18, 1)):
            table = np.arange(8, dtype=np.int32)
            executor.run(Batch([Segment(3, IdLog(IDS), start, length, table, sample=True)]))
    torch.testing.assert_close(full_attention(recording.rows[3], TOKENS), truth, atol=2e-6, rtol=1e-4)
    keys = recording.steps[3][-1].top_keys
    assert keys is not None
    gathered = truth[:, :, -1].gather(-1, keys)
    torch.testing.assert_close(gathered, truth[:, :, -1].topk(3, dim=-1).values, atol=2e-6, rtol=1e-4)


def test_layers_with_a_window_are_refused_before_anything_runs() -> None:
    model = load_model({**SIZES, "architecture": "mistral", "config": {"sliding_window": 5}}, "cpu", 1)
    executor = TorchExecutor(model, 8, PAGE)
    truncation: Any = Registry.discover().build("truncation", "h2o", {})
    with pytest.raises(ValueError, match="'small' has layers with a window of 5 tokens"):
        check_layers(executor, Lossy(truncation=truncation))
    check_layers(executor, Lossy())
