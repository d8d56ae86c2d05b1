"""Small random models, scattered page tables and Hugging Face's own logits to hold the torch backend against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

PAGE_SIZE = 4
NUM_PAGES = 96


@dataclass
class Rig:
    """A model, its executor, and a context's pages scattered over the pool."""

    model: Any
    executor: Any
    seed: int = 0
    _free: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free = np.random.default_rng(self.seed).permutation(NUM_PAGES).tolist()

    def context(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Random ids and a table of fresh pages for them."""
        ids = np.random.default_rng(len(self._free)).integers(1, self.model.shape.vocab_size, length)
        return ids, self.table(length)

    def table(self, length: int) -> np.ndarray:
        count = -(-length // PAGE_SIZE)
        pages, self._free = self._free[:count], self._free[count:]
        assert len(pages) == count, "the rig's pool is too small for this test"
        return np.array(pages, dtype=np.int32)

    def expected(self, ids: Sequence[int], implementation: str = "eager") -> Any:
        """Hugging Face's own logits of every position, [len(ids), vocab]."""
        import torch

        module = copy.deepcopy(self.model.module)
        module.set_attn_implementation(implementation)
        with torch.inference_mode():
            return module(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]

    def generated(self, ids: Sequence[int], count: int) -> list[int]:
        """Hugging Face's own greedy continuation."""
        import torch

        module = copy.deepcopy(self.model.module)
        module.set_attn_implementation("eager")
        out = module.generate(
            torch.tensor([list(ids)]), max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
        )
        return out[0, len(ids) :].tolist()


@pytest.fixture
def segment() -> Callable[..., Any]:
    """Make a sampled segment of ``ids`` over ``table``."""
    from kvarena.framework.execution.contract import Segment
    from kvarena.framework.workloads.tokens import IdLog

    def make(ids: Sequence[int], table: np.ndarray, start: int, stop: int, **options: Any) -> Any:
        log = IdLog(np.asarray(ids, dtype=np.int32))
        return Segment(0, log, start, stop - start, table, **({"sample": True} | options))

    return make


@pytest.fixture
def rig() -> Callable[..., Rig]:
    """Make a rig of a tiny random model of ``architecture``."""
    from kvarena.framework.execution.models import load_model
    from kvarena.framework.execution.torch_executor import TorchExecutor

    def make(architecture: str, decoupled: bool = False, **knobs: Any) -> Rig:
        sizes = {
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_layers": 3,
            "num_heads": 4,
            "max_positions": 256,
        }
        given = {"name": "test", "kind": "random", "architecture": architecture} | sizes | knobs
        model = load_model(given, "cpu", seed=1)
        return Rig(model, TorchExecutor(model, NUM_PAGES, PAGE_SIZE, decoupled=decoupled))

    return make
