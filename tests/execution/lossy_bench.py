"""Contexts led through an executor as the engine does, beside a dense computation whose keys, values and masks are laid
out in the open. Freed pages become NaN, and pages move between steps as if they had been swapped."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvarena.framework.execution.attention import CONTEXT
from kvarena.framework.execution.contract import Batch, Narrowing, Segment
from kvarena.framework.execution.torch_executor import TorchExecutor
from kvarena.framework.policy import Needs, TokenTruncation
from kvarena.framework.workloads.narrowed import NarrowedLog
from kvarena.framework.workloads.tokens import IdLog

PAGE_SIZE, NUM_PAGES = 4, 96


class Sizes(TokenTruncation):
    """Keeps as many tokens of each plane as ``sizes(view)`` says ([L, G], None: all), at random but for the newest
    ``protected``."""

    name = "sizes"

    def __init__(self, sizes: Callable[[Any], Tensor | None], watch: bool = True, protected: int = 1) -> None:
        self._sizes, self._watch, self._protected = sizes, watch, protected
        self.seen: dict[int, dict[str, Any]] = {}

    @property
    def needs(self) -> Needs:
        return Needs(column_sums=self._watch, rows=2 * self._watch)

    def observe(self, view: Any) -> None:
        place = view.state.get("place", torch.zeros_like(view.positions, dtype=torch.float32))
        view.state["place"] = torch.where(place == 0, view.positions + 1.0, place)

    def keep(self, view: Any) -> Tensor | None:
        seen = {"positions": view.positions, "place": view.state["place"], "tokens": view.tokens}
        if self._watch:
            seen |= {"column_sums": view.column_sums, "rows": view.rows}
        self.seen[view.conversation] = seen
        sizes = self._sizes(view)
        keep = None
        if sizes is not None:
            score = torch.rand(view.positions.shape, generator=torch.Generator().manual_seed(view.tokens))
            score[view.positions >= view.tokens - self._protected] = 2.0
            score[view.positions < 0] = -1.0
            rank = score.argsort(dim=-1, descending=True).argsort(dim=-1)
            keep = (rank < sizes[..., None]) & (view.positions >= 0)
        seen["keep"] = keep
        return keep

    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Any) -> float:
        return cached_tokens


class Dense:
    """Every key and value that was ever computed, what attention reads of them now, and what each plane still has."""

    def __init__(self, model: Any) -> None:
        self._module = copy.deepcopy(model.module)
        shape = model.shape
        empty = torch.empty(shape.num_layers, shape.num_kv_heads, 0, shape.head_dim)
        self.raw = [empty, empty.clone()]
        self.read = [empty.clone(), empty.clone()]
        self.alive = torch.ones(shape.num_layers, shape.num_kv_heads, 0, dtype=torch.bool)
        self.probabilities: list[Tensor] = []  # per layer [H, queries, tokens], of the last step

    def step(self, ids: Sequence[int]) -> Tensor:
        """Logits after the last of ``ids``, which follow what came before."""
        before, new = self.alive.shape[-1], len(ids)
        self.alive = torch.cat((self.alive, self.alive.new_ones(*self.alive.shape[:2], new)), dim=-1)
        self.raw, self.read = ([self._longer(held, new) for held in pair] for pair in (self.raw, self.read))
        self.probabilities = []
        with torch.inference_mode():
            at = torch.arange(before, before + new)[None]
            row = torch.tensor([list(ids)])
            return self._module(input_ids=row, position_ids=at, use_cache=False, **{CONTEXT: self}).logits[0, -1]

    @staticmethod
    def _longer(held: Tensor, new: int) -> Tensor:
        return torch.cat((held, held.new_zeros(*held.shape[:2], new, held.shape[3])), dim=2)

    def attend(self, layer: Any, query: Tensor, key: Tensor, value: Tensor, options: Any) -> Tensor:
        index, new, group = layer.layer_idx, len(query), query.shape[1] // key.shape[1]
        for which, numbers in enumerate((key, value)):
            for held in (self.raw, self.read):
                held[which][index, :, -new:] = numbers.transpose(0, 1)
        keys, values = (held[index].repeat_interleave(group, 0) for held in self.read)
        alive = self.alive[index].repeat_interleave(group, 0)[:, None]
        total = alive.shape[-1]
        seen = torch.arange(total)[None] <= torch.arange(total - new, total)[:, None]
        scores = options.scale * query.transpose(0, 1) @ keys.transpose(1, 2)
        self.probabilities.append(scores.masked_fill(~(alive & seen), float("-inf")).softmax(-1))
        return (self.probabilities[-1] @ values).transpose(0, 1)


class Led:
    """One context: its pages, its log in slots, and the dense computation beside it."""

    def __init__(self, bench: Bench, number: int, length: int) -> None:
        self.bench, self.number = bench, number
        self.ids = np.random.default_rng(number).integers(1, 97, length)
        self.log = NarrowedLog(IdLog(self.ids.astype(np.int32)), number)
        self.dense = Dense(bench.model)
        self.slots = self.tokens = 0
        self.pages: list[int] = []

    @property
    def memory(self) -> Any:
        """What the executor remembers of it."""
        return self.bench.executor._lossy._narrower.memory(self.number)

    def segment(self, length: int, stage: str) -> Segment:
        need = -(-(self.slots + length) // PAGE_SIZE)
        while len(self.pages) < need:
            self.pages.append(self.bench.free.pop(0))
        narrowing = Narrowing(self.number, 100 + self.number, stage, self.tokens + length)  # type: ignore[arg-type]
        table = np.array(self.pages, dtype=np.int32)
        return Segment(0, self.log, self.slots, length, table, sample=True, narrowing=narrowing)

    def after(self, length: int, slots: int | None) -> None:
        """Slots that were let go of are gone, and so are their pages; the others move."""
        self.tokens += length
        end = self.slots + length
        self.slots = end if slots is None else slots
        self.log.offset += end - self.slots
        need = -(-self.slots // PAGE_SIZE)
        gone, held = self.pages[need:], self.pages[:need]
        self.bench.free += gone
        self.pages, self.bench.free = self.bench.free[:need], self.bench.free[need:]
        self.bench.pool[self.pages] = self.bench.pool[held].clone()
        self.bench.free += held
        self.bench.pool[self.bench.free] = float("nan")
        if self.slots % PAGE_SIZE:
            self.bench.pool[self.pages[-1], :, :, :, self.slots % PAGE_SIZE :] = float("nan")


class Bench:
    """An executor of a small random model, and contexts in it."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.model = model
        self.executor = TorchExecutor(model, NUM_PAGES, PAGE_SIZE, **options)
        self.executor.listener = self
        self.pool = self.executor.pool
        self.free = np.random.default_rng(7).permutation(NUM_PAGES).tolist()
        self.logits = torch.empty(0)

    def attended(self, *_: Any) -> None: ...

    def chose(self, segments: Any, logits: Tensor) -> None:
        self.logits = logits.clone()

    def run(self, *parts: tuple[Led, int, str]) -> Tensor:
        """Compute the next tokens of some contexts in one batch; logits after each."""
        result = self.executor.run(Batch([led.segment(length, stage) for led, length, stage in parts]))
        for led, length, _ in parts:
            led.after(length, result.slots.get(led.number))
            assert led.slots == led.memory.slots(PAGE_SIZE)
        return self.logits

    def check(self, *parts: tuple[Led, int, str]) -> None:
        """As :meth:`run`; the logits are those of the dense computation."""
        for row, (led, length, _) in zip(self.run(*parts), parts, strict=True):
            exact = led.dense.step(led.ids[led.tokens - length : led.tokens])
            torch.testing.assert_close(row, exact, rtol=2e-4, atol=2e-4)
