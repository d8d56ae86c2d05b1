"""Attention to chosen pages against a dense computation that masks the others, head by head."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parent))
from lossy_bench import NUM_PAGES, PAGE_SIZE, Dense  # noqa: E402
from torch import Tensor  # noqa: E402

from kvarena.framework.execution.contract import Batch, Segment  # noqa: E402
from kvarena.framework.execution.torch_executor import TorchExecutor  # noqa: E402
from kvarena.framework.policy import Selection  # noqa: E402
from kvarena.framework.workloads.tokens import IdLog  # noqa: E402
from kvarena.policies.truncation.quest import Quest  # noqa: E402

HEADS, KV_HEADS = 4, 2


class Selected(Dense):
    """Sees, in a single query, the pages that Quest would choose; spelled out from the keys themselves."""

    def __init__(self, model: Any, quest: Quest) -> None:
        super().__init__(model)
        self.quest = quest

    def attend(self, layer: Any, query: Tensor, key: Tensor, value: Tensor, options: Any) -> Tensor:
        dense = super().attend(layer, query, key, value, options)
        keys, values = (held[layer.layer_idx] for held in self.read)
        total = keys.shape[1]
        count = max(3, self.quest.budget(total) // PAGE_SIZE)
        pages = -(-total // PAGE_SIZE)
        if len(query) > 1 or layer.layer_idx < self.quest.dense_layers or count >= pages:
            return dense
        if self.quest.budget(total) >= total:
            return dense
        out = torch.empty_like(query)
        for head in range(query.shape[1]):
            q, k = query[0, head], keys[head // (HEADS // KV_HEADS)]
            held = k.split(PAGE_SIZE)
            bound = torch.stack([torch.maximum(q * page.amin(0), q * page.amax(0)).sum() for page in held])
            for page, most in zip(held, bound, strict=True):
                assert most >= (page @ q).max() - 1e-5
            chosen = {*bound.topk(count).indices.tolist(), pages - 1}
            seen = torch.tensor([t // PAGE_SIZE in chosen for t in range(total)])
            weights = (options.scale * k @ q).masked_fill(~seen, float("-inf")).softmax(0)
            out[0, head] = weights @ values[head // (HEADS // KV_HEADS)]
        return out


class Arena:
    """An executor, and ordinary contexts by request number."""

    def __init__(self, model: Any, selection: Selection | None) -> None:
        self.executor = TorchExecutor(model, NUM_PAGES, PAGE_SIZE, selection=selection)
        self.executor.pool.fill_(float("nan"))
        self.free = np.random.default_rng(3).permutation(NUM_PAGES).tolist()
        self.pages: dict[int, list[int]] = {}
        self.tokens: dict[int, int] = {}

    def ids(self, request: int) -> np.ndarray:
        return np.random.default_rng(request).integers(1, 97, 200).astype(np.int32)

    def segment(self, request: int, length: int) -> Segment:
        start, held = self.tokens.get(request, 0), self.pages.setdefault(request, [])
        while len(held) * PAGE_SIZE < start + length:
            held.append(self.free.pop(0))
        self.tokens[request] = start + length
        table = np.array(held, dtype=np.int32)
        return Segment(request, IdLog(self.ids(request)), start, length, table, sample=True)

    def move(self, request: int) -> None:
        """As if it had been swapped out and in; where it was is another's now."""
        held = self.pages[request]
        fresh, self.free = self.free[: len(held)], self.free[len(held) :]
        self.executor.pool[fresh] = self.executor.pool[held].clone()
        self.executor.pool[held] = torch.randn_like(self.executor.pool[held])
        self.pages[request], self.free = fresh, self.free + held

    def run(self, *parts: tuple[int, int]) -> Tensor:
        return self.executor.logits([self.segment(request, length) for request, length in parts])


@pytest.fixture
def model(rig: Callable[..., Any]) -> Any:
    return rig("llama", num_kv_heads=KV_HEADS).model


@pytest.mark.parametrize("quest", [Quest(12, None, 1), Quest(16, None, 2), Quest(None, 0.5, 0)], ids=str)
def test_logits_are_those_of_the_chosen_pages(model: Any, quest: Quest) -> None:
    arena = Arena(model, quest)
    dense = {n: Selected(model, quest) for n in (1, 2)}
    plan: list[list[tuple[int, int]]] = [[(1, 30)], [(1, 1), (2, 41)], *[[(1, 1), (2, 1)]] * 4, [(2, 6), (1, 1)]]
    for step, batch in enumerate([*plan, *[[(1, 1), (2, 1)]] * 3]):
        before = {n: arena.tokens.get(n, 0) for n, _ in batch}
        for row, (n, length) in zip(arena.run(*batch), batch, strict=True):
            exact = dense[n].step(arena.ids(n)[before[n] : before[n] + length].tolist())
            torch.testing.assert_close(row, exact, rtol=2e-4, atol=2e-4)
        if step in (3, 6):
            arena.move(1)


def test_pages_that_became_anothers_are_looked_at_again(model: Any) -> None:
    quest = Quest(12, None, 0)
    arena = Arena(model, quest)
    arena.run((1, 40))
    arena.run((1, 1))
    arena.free = arena.pages.pop(1) + arena.free
    dense = Selected(model, quest)
    dense.step(arena.ids(2)[:40].tolist())
    arena.run((2, 40))
    row = arena.run((2, 1))[0]
    torch.testing.assert_close(row, dense.step(arena.ids(2)[40:41].tolist()), rtol=2e-4, atol=2e-4)


def test_a_budget_of_the_whole_context_changes_no_bit(model: Any) -> None:
    arenas = Arena(model, Quest(64, None, 0)), Arena(model, None)
    for batch in ([(1, 30)], [(1, 1), (2, 20)], [(2, 1), (1, 1)], [(1, 1), (2, 1)]):
        chosen, whole = (arena.run(*batch) for arena in arenas)
        assert torch.equal(chosen, whole)


class Names(Selection):
    """Selects what it is told to."""

    name = "names"

    def __init__(self, pages: Tensor | None) -> None:
        self.given = pages

    def pages(self, layer: int, query: Tensor, low: Tensor, high: Tensor, tokens: int, page_size: int) -> Tensor | None:
        return self.given


@pytest.mark.parametrize(
    "pages",
    [
        torch.zeros(4, 1),
        torch.zeros(3, 1, dtype=torch.int64),
        torch.tensor([[0, 0]] * 4),
        torch.tensor([[0, 11]] * 4),
        torch.tensor([[-1, 2]] * 4),
    ],
)
def test_bad_selections_are_refused(model: Any, pages: Tensor) -> None:
    arena = Arena(model, Names(pages))
    arena.run((1, 41))
    with pytest.raises(ValueError, match="truncation 'names' selects"):
        arena.run((1, 1))


def test_decoupled_positions_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=r"needs backend\.decoupled=false"):
        TorchExecutor(model, NUM_PAGES, PAGE_SIZE, selection=Quest(), decoupled=True)


def test_batches_that_only_decode_run_through_run(model: Any) -> None:
    arena = Arena(model, Quest(12, None, 0))
    arena.executor.run(Batch([arena.segment(1, 40)]))
    result = arena.executor.run(Batch([arena.segment(1, 1)]))
    assert len(result.tokens) == 1
    assert not result.slots
