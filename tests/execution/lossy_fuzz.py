"""Random contexts under random policies, led through the executor as the engine does, beside a dense computation in
float64 that has every key and value there ever was and masks, plane by plane, what a policy let go of."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from fuzz_cases import VOCABULARY, Case, Noting, Stage
from torch import Tensor

from kvarena.framework.execution.attention import CONTEXT
from kvarena.framework.execution.contract import Batch, Narrowing, Segment
from kvarena.framework.execution.lossy.frozen import dense
from kvarena.framework.execution.lossy.rows import PoolRows
from kvarena.framework.execution.rotary import decouple
from kvarena.framework.execution.torch_executor import TorchExecutor
from kvarena.framework.policy import TokenTruncation
from kvarena.framework.workloads.narrowed import NarrowedLog
from kvarena.framework.workloads.tokens import IdLog

# --- the dense computation ----------------------------------------------------------------------------------------


class Dense:
    """All keys and values of a context in float64; ``alive`` bool [L, G, T]: what each plane still has."""

    def __init__(self, model: Any, by_slot: bool) -> None:
        self._module = copy.deepcopy(model.module).double()
        self._rotary = decouple(self._module, model.shape.max_positions) if by_slot else None
        shape = model.shape
        empty = torch.empty(shape.num_layers, shape.num_kv_heads, 0, shape.head_dim, dtype=torch.float64)
        self.raw = [empty, empty.clone()]
        self.read = [empty.clone(), empty.clone()]
        self.alive = torch.ones(shape.num_layers, shape.num_kv_heads, 0, dtype=torch.bool)
        self.probabilities: list[Tensor] = []  # of the last step, per layer [H, queries, T]
        self.outs: list[Tensor] = []  # [queries, H, head_dim]

    def step(self, ids: Sequence[int]) -> Tensor:
        """Logits of each of ``ids``."""
        before, new = self.alive.shape[-1], len(ids)
        self.alive = torch.cat((self.alive, self.alive.new_ones(*self.alive.shape[:2], new)), dim=-1)
        for pair in (self.raw, self.read):
            pair[:] = [torch.nn.functional.pad(held, (0, 0, 0, new)) for held in pair]
        self.probabilities, self.outs = [], []
        with torch.inference_mode():
            at = torch.arange(before, before + new)[None]
            row = torch.tensor([list(ids)])
            return self._module(input_ids=row, position_ids=at, use_cache=False, **{CONTEXT: self}).logits[0]

    def attend(self, layer: Any, query: Tensor, key: Tensor, value: Tensor, options: Any) -> Tensor:
        index, new, total = layer.layer_idx, len(query), self.alive.shape[-1]
        for which, numbers in enumerate((key, value)):
            for held in (self.raw, self.read):
                held[which][index, :, -new:] = numbers.transpose(0, 1)
        group = query.shape[1] // key.shape[1]
        alive = self.alive[index].repeat_interleave(group, 0)  # [H, T]
        keys, values = (held[index].repeat_interleave(group, 0) for held in self.read)
        queries = query.transpose(0, 1)
        if self._rotary is not None:
            places = (alive.cumsum(-1) - 1).clamp(min=0)
            keys, queries = self._turned(layer, keys, places), self._turned(layer, queries, places[:, -new:])
        seen = torch.arange(total)[None] <= torch.arange(total - new, total)[:, None]
        scores = options.scale * queries @ keys.transpose(1, 2)
        self.probabilities.append(scores.masked_fill(~(alive[:, None] & seen), float("-inf")).softmax(-1))
        self.outs.append((self.probabilities[-1] @ values).transpose(0, 1))
        return self.outs[-1]

    def _turned(self, layer: Any, x: Tensor, at: Tensor) -> Tensor:
        """``x`` [H, n, head_dim] rotated to the places ``at`` [H, n]."""
        assert self._rotary is not None
        table = self._rotary(layer)
        half = table.cos.shape[1] // 2
        turn = torch.complex(table.cos[at, :half].double(), table.sin[at, :half].double())
        turned = torch.complex(x[..., :half].contiguous(), x[..., half : 2 * half].contiguous()) * turn
        return torch.cat((turned.real, turned.imag, x[..., 2 * half :]), dim=-1)


# --- contexts in an executor --------------------------------------------------------------------------------------


class Led:
    """One context: its pages, its log in slots, and the dense computation beside it."""

    def __init__(self, driver: Driver, number: int, ids: np.ndarray) -> None:
        self.driver, self.number, self.ids = driver, number, ids
        self.begin()

    def begin(self) -> None:
        """(Again) from nothing, under a new number."""
        self.context = self.driver.number()
        self.log = NarrowedLog(IdLog(self.ids.astype(np.int32)), self.context)
        self.dense = Dense(self.driver.model, self.driver.case.by_slot) if self.driver.checks else None
        shape = self.driver.model.shape
        none = torch.zeros(shape.num_layers, shape.num_kv_heads, 0, dtype=torch.int64)
        self.rounded = [none, none.clone()]  # how often each key and value changed
        self.slots = self.tokens = 0
        self.pages: list[int] = []
        self.host: Tensor | None = None

    def forget(self) -> None:
        """All that is known of it, and its pages."""
        self.driver.executor.forget(self.context)
        self.driver.release(self.pages)
        self.begin()

    def segment(self, length: int, stage: Stage) -> Segment:
        if self.host is not None:
            self.pages = self.driver.take(len(self.host))
            self.driver.pool[self.pages] = self.host
            self.host = None
        size = self.driver.case.page_size
        self.pages += self.driver.take(-(-(self.slots + length) // size) - len(self.pages))
        table = np.array(self.pages, dtype=np.int32)
        told = None
        if stage != "plain":
            told = Narrowing(self.context, 100 + self.number, stage, self.tokens + length)  # type: ignore[arg-type]
        return Segment(self.number, self.log, self.slots, length, table, sample=True, narrowing=told)

    def after(self, length: int, slots: int | None) -> None:
        """Slots that were let go of, and their pages, become NaN."""
        size, pool = self.driver.case.page_size, self.driver.pool
        self.tokens += length
        end = self.slots + length
        self.slots = end if slots is None else slots
        self.log.offset += end - self.slots
        need = -(-self.slots // size)
        self.driver.release(self.pages[need:])
        self.pages = self.pages[:need]
        if self.slots % size:
            pool[self.pages[-1], :, :, :, self.slots % size :] = float("nan")

    def swap(self) -> None:
        """Away from the device."""
        if self.host is None:
            self.host = self.driver.pool[self.pages].clone()
            self.driver.release(self.pages)
            self.pages = []


@dataclass
class Trace:
    """What a drive left. ``logits``: by context and step; ``kept``: by conversation and tokens, bool [L, G, tokens];
    ``decided``: as ``kept``, only where a policy wanted tokens to leave; ``refused``: cuts that were not made."""

    logits: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    kept: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    decided: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    refused: int = 0
    cuts: int = 0
    fronts: int = 0
    uniform: bool = True
    worst: dict[str, float] = field(default_factory=dict)


class Driver:
    """Leads the contexts of a case. ``checks``: against the dense computation. ``policy``: another than the case's.
    ``only``: no other contexts. ``late``: tokens of context 0 from this one on are others."""

    def __init__(
        self,
        case: Case,
        model: Any,
        *,
        checks: bool = True,
        policy: TokenTruncation | None = None,
        only: int | None = None,
        late: int | None = None,
    ) -> None:
        self.case, self.model, self.checks, self.only = case, model, checks, only
        self.noting = Noting(case.make_policy()) if policy is None else None
        self.executor = TorchExecutor(
            model, 1200 // case.page_size + 40, case.page_size,
            truncation=self.noting or policy, compression=case.kivi, decoupled=case.by_slot,
        )  # fmt: skip
        self.executor.listener = self
        self.pool, self.trace = self.executor.pool, Trace()
        self.free = list(range(len(self.pool)))
        self._rng = np.random.default_rng(5)
        self.release([])
        self._numbers = 0
        self.outs: list[Tensor] = []
        self.logits = torch.empty(0)
        contexts = 1 + max(n for batch in case.plan for n, _, _ in batch)
        self.leds = [Led(self, n, np.random.default_rng(n).integers(1, VOCABULARY, 1200)) for n in range(contexts)]
        if late is not None:
            self.leds[0].ids[late:] = self.leds[0].ids[late:] % (VOCABULARY - 1) + 1
            self.leds[0].begin()

    def number(self) -> int:
        """Of a context that begins."""
        self._numbers += 1
        return self._numbers

    def take(self, count: int) -> list[int]:
        """Pages, in no order."""
        self._rng.shuffle(self.free)
        taken, self.free = self.free[: max(0, count)], self.free[max(0, count) :]
        return taken

    def release(self, pages: list[int]) -> None:
        """Pages are nobody's: NaN."""
        self.free += pages
        self.pool[self.free] = float("nan")

    def attended(self, layer: int, segments: Any, query: Tensor, out: Tensor) -> None:
        """The listener's."""
        if layer == 0:
            self.outs = []
        self.outs.append(out.clone())

    def chose(self, segments: Any, logits: Tensor) -> None:
        """The listener's."""
        self.logits = logits.clone()

    def drive(self) -> Trace:
        """The whole plan."""
        for batch in self.case.plan:
            parts = [each for each in batch if self.only in (None, each[0])]
            for n, _, stage in parts:
                if stage == "forget":
                    self.leds[n].forget()
            self._run([each for each in parts if each[2] != "forget"])
            for _ in range(self.case.swaps):
                self.leds[int(self._rng.integers(len(self.leds)))].swap()
        return self.trace

    def _run(self, parts: list[tuple[int, int, Stage]]) -> None:
        if not parts:
            return
        result = self.executor.run(Batch([self.leds[n].segment(length, stage) for n, length, stage in parts]))
        row = 0
        for i, (n, length, stage) in enumerate(parts):
            led = self.leds[n]
            led.after(length, result.slots.get(led.context))
            self.trace.logits[n, self._step(n)] = self.logits[i]
            if led.dense is not None:
                self._compare(led, led.dense, length, slice(row, row + length), self.logits[i])
            if stage != "plain":
                self._follow(led, length)
            row += length
        assert set(result.slots) <= {self.leds[n].context for n, _, _ in parts}

    def _step(self, n: int) -> int:
        return sum(1 for number, _ in self.trace.logits if number == n)

    def _compare(self, led: Led, exact: Dense, length: int, rows: slice, logits: Tensor) -> None:
        wanted = exact.step(led.ids[led.tokens - length : led.tokens])[-1]
        for layer, out in enumerate(exact.outs):
            self._close("outs", self.outs[layer][rows], out, 2e-4)
        self._close("logits", logits, wanted, 5e-4)

    def _close(self, name: str, found: Tensor, exact: Tensor, limit: float) -> None:
        assert found.isfinite().all(), name
        error = float((found.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-3))
        self.trace.worst[name] = max(error, self.trace.worst.get(name, 0.0))
        assert error < limit, f"{name}: {error}"

    # --- what is cached -------------------------------------------------------------------------------------------

    def _follow(self, led: Led, length: int) -> None:
        memory = self.executor.memory(led.context)
        assert memory is not None
        assert memory.slots(self.case.page_size) == led.slots
        assert (memory.positions[..., memory.front_columns :] >= 0).all()
        now = _named(memory.positions, led.tokens)
        key = (100 + led.number, led.tokens)
        self.trace.kept[key] = now
        self.trace.fronts += memory.front is not None
        self.trace.uniform &= bool((now.sum(-1) == now[0, 0].sum()).all())
        if self.case.by_slot:
            assert (memory.positions.diff(dim=-1) > 0).all()
        if self.noting is None:
            return
        seen = self.noting.seen[100 + led.number]
        before = _named(seen["positions"], led.tokens)
        held = seen["positions"] >= 0
        assert torch.equal(seen["place"][held], seen["positions"][held] + 1.0)
        asked = before if seen["keep"] is None else _marked(seen["positions"], seen["keep"] & held, led.tokens)
        if not torch.equal(asked, before):
            self.trace.decided[key] = asked
            self.trace.cuts += 1
            made = torch.equal(now, asked)
            self.trace.refused += not made
            uniform = int(asked.sum(-1).min()) == int(asked.sum(-1).max())
            assert made or (torch.equal(now, before) and not (uniform and self.case.kivi is None))
        else:
            assert torch.equal(now, before)
        if led.dense is not None:
            assert torch.equal(before, led.dense.alive)
            self._check_statistics(seen, led.dense)
            led.dense.alive = now
            self._check_numbers(led, led.dense, memory, length)

    def _check_statistics(self, seen: dict[str, Any], exact: Dense) -> None:
        probabilities = torch.stack(exact.probabilities)
        at = seen["positions"].repeat_interleave(probabilities.shape[1] // seen["positions"].shape[1], 1)
        filled, at = at >= 0, at.clamp(min=0)
        if "column_sums" in seen:
            sums = probabilities.sum(2).gather(-1, at)
            assert (seen["column_sums"] - sums)[filled].abs().max() < 1e-4 * probabilities.shape[2] ** 0.5
        if "rows" in seen:
            height = min(self.noting.needs.rows, probabilities.shape[2])
            wide = at[:, :, None].expand(-1, -1, height, -1)
            rows = probabilities[:, :, probabilities.shape[2] - height :].gather(-1, wide)
            assert seen["rows"].shape == rows.shape
            assert (seen["rows"] - rows)[filled[:, :, None].expand_as(rows)].abs().max() < 1e-4

    def _check_numbers(self, led: Led, exact: Dense, memory: Any, length: int) -> None:
        """K/V stay what they were, but for what a compression rounds: values once, keys once or whenever they are
        packed anew."""
        rows = PoolRows.of(self.pool)
        table = torch.tensor(led.pages, dtype=torch.int32)
        held, at = memory.positions >= 0, memory.positions.clamp(min=0)
        planes = torch.arange(at.shape[0])[:, None, None], torch.arange(at.shape[1])[None, :, None], at
        layer, head, token = (axis.expand_as(at)[held] for axis in planes)
        for which in (0, 1):
            raw = exact.raw[which]
            numbers = dense(rows, table, memory, bool(which))[held]
            known = exact.read[which][layer, head, token]
            old = (token < led.tokens - length)[:, None]
            changed = (numbers - known).abs().amax(-1, keepdim=True) > torch.where(old, 0.0, 1e-4) * raw.abs().max()
            if self.case.kivi is None:
                assert not changed.any(), f"{int(changed.sum())} K/V of kept tokens changed"
            else:
                self._check_rounded(which, led, numbers, changed[:, 0], (layer, head, token))
            exact.read[which][layer, head, token] = numbers.double()

    def _check_rounded(self, which: int, led: Led, numbers: Tensor, changed: Tensor, at: tuple[Tensor, ...]) -> None:
        kivi, raw = self.case.kivi, led.dense.raw[which]
        assert kivi is not None
        spread = raw.amax(2) - raw.amin(2)
        spread = spread[at[:2]] if which == 0 else raw[at].amax(-1, keepdim=True) - raw[at].amin(-1, keepdim=True)
        led.rounded[which] = times = torch.nn.functional.pad(
            led.rounded[which], (0, raw.shape[2] - led.rounded[which].shape[2])
        )
        times[at] += changed
        often = times[at]
        if which:
            often = often.clamp(max=1)
        error = (numbers - raw[at]).abs() - spread / (2**kivi.bits - 1) * 0.5 * often[:, None]
        assert error.max() < 1e-4 * raw.abs().max(), (
            "KV"[which],
            float(error.max()),
            int(often[error.amax(-1).argmax()]),
        )
        if self.trace.uniform:  # else what longer planes have more is packed however new
            newest = at[2] >= led.tokens - kivi.residual
            assert which == 0 or not times[at][newest].any()


def _named(positions: Tensor, tokens: int) -> Tensor:
    return _marked(positions, positions >= 0, tokens)


def _marked(positions: Tensor, which: Tensor, tokens: int) -> Tensor:
    """Bool [L, G, tokens]; no token twice."""
    found = torch.zeros(*positions.shape[:2], tokens, dtype=torch.int64)
    found.scatter_add_(-1, positions.clamp(min=0), which.long())
    assert found.max() <= 1
    return found.bool()
