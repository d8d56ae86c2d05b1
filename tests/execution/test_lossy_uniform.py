"""Contexts from which tokens leave, against a dense computation in which those keys are masked, plane by plane."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from kvarena.framework.execution.attention import CONTEXT  # noqa: E402
from kvarena.framework.execution.contract import Batch, Narrowing, Segment  # noqa: E402
from kvarena.framework.execution.lossy import observing  # noqa: E402
from kvarena.framework.execution.rotary import decouple  # noqa: E402
from kvarena.framework.execution.torch_executor import TorchExecutor  # noqa: E402
from kvarena.framework.policy import Needs, TokenTruncation  # noqa: E402
from kvarena.framework.workloads.narrowed import NarrowedLog  # noqa: E402
from kvarena.framework.workloads.tokens import IdLog  # noqa: E402

PAGE_SIZE, NUM_PAGES = 4, 96

# --- policies -----------------------------------------------------------------------------------------------------


@dataclass
class Keeping(TokenTruncation):
    """Keeps ``budget`` tokens of each plane, those that :meth:`score` likes best; records what it saw and kept."""

    budget: int = 10
    positions: Literal["true", "cache"] = "true"
    seen: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    name = "keeping"

    def score(self, view: Any) -> Tensor:
        return view.positions.float()

    def keep(self, view: Any) -> Tensor | None:
        self.seen.setdefault(view.conversation, []).append(seen := {"positions": view.positions, "stage": view.stage})
        if self.needs.anything:
            seen |= {"column_sums": view.column_sums, "rows": view.rows}
        seen["state"] = dict(view.state)
        keep = None
        if view.positions.shape[-1] > self.budget:
            keep = torch.zeros_like(view.positions, dtype=torch.bool)
            keep.scatter_(-1, self.score(view).topk(self.budget).indices, True)
        seen["keep"] = torch.ones_like(view.positions, dtype=torch.bool) if keep is None else keep
        return keep

    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Any) -> float:
        return min(cached_tokens, self.budget)


@dataclass
class Heaviest(Keeping):
    """By accumulated attention; the newest two stay."""

    @property
    def needs(self) -> Needs:
        return Needs(column_sums=True, rows=2)

    def observe(self, view: Any) -> None:
        added = view.grouped(view.column_sums, "sum")
        view.state["score"] = view.state.get("score", torch.zeros_like(added)) + added
        place = view.state.get("place", torch.zeros_like(view.positions, dtype=torch.float32))
        view.state["place"] = torch.where(place == 0, view.positions + 1.0, place)
        heads = view.state.get("per_head", torch.zeros_like(view.column_sums))[:, :, -view.positions.shape[-1] :]
        view.state["per_head"] = torch.where(heads == 0, view.column_sums, heads)

    def score(self, view: Any) -> Tensor:
        return view.state["score"] + 1e3 * (view.positions >= view.tokens - 2)


@dataclass
class AtRandom(Keeping):
    """Whatever; each plane for itself."""

    def score(self, view: Any) -> Tensor:
        return torch.rand(view.positions.shape, generator=torch.Generator().manual_seed(view.tokens))


# --- the dense computation ----------------------------------------------------------------------------------------


class Dense:
    """All keys and values that were ever computed, and which of them each layer and head still has."""

    def __init__(self, model: Any, by_slot: bool) -> None:
        self._module = copy.deepcopy(model.module)
        self._rotary = decouple(self._module, model.shape.max_positions) if by_slot else None
        self._shape = model.shape
        self._kv: list[list[Tensor]] = [[] for _ in range(model.shape.num_layers)]
        self.alive = torch.ones(model.shape.num_layers, model.shape.num_kv_heads, 0, dtype=torch.bool)
        self.probabilities: list[Tensor] = []  # per layer [H, queries, tokens], of the last step

    def step(self, ids: Sequence[int]) -> Tensor:
        """Logits of each of ``ids``, which follow what came before."""
        before = self.alive.shape[-1]
        self.alive = torch.cat((self.alive, torch.ones(*self.alive.shape[:2], len(ids), dtype=torch.bool)), dim=-1)
        self.probabilities = []
        row = torch.tensor([list(ids)])
        with torch.inference_mode():
            at = torch.arange(before, before + len(ids))[None]
            return self._module(input_ids=row, position_ids=at, use_cache=False, **{CONTEXT: self}).logits[0]

    def attend(self, layer: Any, query: Tensor, key: Tensor, value: Tensor, options: Any) -> Tensor:
        index, group = layer.layer_idx, query.shape[1] // key.shape[1]
        self._kv[index].append(torch.stack((key, value)))
        keys, values = torch.cat(self._kv[index], dim=1)
        outs, probabilities = [], []
        for head in range(query.shape[1]):
            alive = self.alive[index, head // group]
            q, k = query[:, head], keys[:, head // group]
            if self._rotary is not None:
                slots = (alive.cumsum(0) - 1).clamp(min=0)
                k, q = self._turned(layer, k, slots), self._turned(layer, q, slots[-len(q) :])
            age = torch.arange(len(k))[None] - torch.arange(len(k) - len(q), len(k))[:, None]
            scores = (options.scale * q @ k.T).masked_fill(~(alive & (age <= 0)), float("-inf"))
            probabilities.append(scores.softmax(-1))
            outs.append(probabilities[-1] @ values[:, head // group])
        self.probabilities.append(torch.stack(probabilities))
        return torch.stack(outs, dim=1)

    def _turned(self, layer: Any, x: Tensor, at: Tensor) -> Tensor:
        table = self._rotary(layer)
        half = table.cos.shape[1] // 2
        turn = torch.complex(table.cos[at, :half], table.sin[at, :half])
        turned = torch.complex(x[:, :half], x[:, half : 2 * half]) * turn
        return torch.cat((turned.real, turned.imag, x[:, 2 * half :]), dim=1)


# --- a context as the engine would lead it ------------------------------------------------------------------------


class Led:
    """One context: its pages, its log in slots, and the dense computation beside it."""

    def __init__(self, bench: Bench, number: int, length: int) -> None:
        self.bench, self.number = bench, number
        self.ids = np.random.default_rng(number).integers(1, 97, length)
        self.log = NarrowedLog(IdLog(self.ids.astype(np.int32)), number)
        self.dense = Dense(bench.model, bench.policy is not None and bench.policy.positions == "cache")
        self.slots = self.tokens = 0
        self.pages: list[int] = []

    def segment(self, length: int, stage: str) -> Segment:
        need = -(-(self.slots + length) // PAGE_SIZE)
        while len(self.pages) < need:
            self.pages.append(self.bench.free.pop(0))
        narrowing = Narrowing(self.number, 100 + self.number, stage, self.tokens + length)  # type: ignore[arg-type]
        table = np.array(self.pages, dtype=np.int32)
        return Segment(0, self.log, self.slots, length, table, sample=True, narrowing=narrowing)

    def after(self, length: int, slots: int | None) -> None:
        """As the engine does: slots that were let go of are gone, and their pages too; the others move elsewhere."""
        self.tokens += length
        end = self.slots + length
        self.slots = end if slots is None else slots
        self.log.offset += end - self.slots
        need = -(-self.slots // PAGE_SIZE)
        gone, self.pages = self.pages[need:], self.pages[:need]
        self.bench.pool[gone] = float("nan")
        self.bench.free += gone
        if self.slots % PAGE_SIZE:
            self.bench.pool[self.pages[-1], :, :, :, self.slots % PAGE_SIZE :] = float("nan")
        old, self.pages = self.pages, [self.bench.free.pop(0) for _ in self.pages]
        self.bench.pool[self.pages] = self.bench.pool[old]
        self.bench.pool[old] = float("nan")
        self.bench.free += old


class Bench:
    """An executor of a small random model, and contexts in it."""

    def __init__(self, model: Any, policy: Keeping | None, **options: Any) -> None:
        self.model, self.policy = model, policy
        decoupled = policy is not None and policy.positions == "cache"
        self.executor = TorchExecutor(
            model, NUM_PAGES, PAGE_SIZE, **({"truncation": policy, "decoupled": decoupled} | options)
        )
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
        assert set(result.slots) <= {led.number for led, _, _ in parts}
        for led, length, _ in parts:
            led.after(length, result.slots.get(led.number))
        return self.logits

    def check(self, *parts: tuple[Led, int, str]) -> None:
        """As :meth:`run`; the logits are those of the dense computation, which then lets go of the same tokens."""
        logits = self.run(*parts)
        for row, (led, length, _) in zip(logits, parts, strict=True):
            exact = led.dense.step(led.ids[led.tokens - length : led.tokens])[-1]
            torch.testing.assert_close(row, exact, rtol=1e-4, atol=1e-4)
            self._follow(led)

    def _follow(self, led: Led) -> None:
        seen = self.policy.seen[100 + led.number][-1]
        held = torch.zeros_like(led.dense.alive)
        held.scatter_(-1, seen["positions"], True)
        assert torch.equal(held, led.dense.alive)
        self._check_statistics(led, seen)
        kept = torch.zeros_like(held, dtype=torch.int64)
        kept.scatter_(-1, seen["positions"], seen["keep"].long())
        led.dense.alive = kept.bool()
        assert led.slots == led.dense.alive[0, 0].sum()

    def _check_statistics(self, led: Led, seen: dict[str, Any]) -> None:
        if "column_sums" not in seen:
            return
        exact = torch.stack(led.dense.probabilities)  # [L, H, queries, tokens]
        at = seen["positions"].repeat_interleave(exact.shape[1] // seen["positions"].shape[1], dim=1)
        torch.testing.assert_close(seen["column_sums"], exact.sum(2).gather(-1, at), rtol=1e-4, atol=1e-5)
        rows = exact[:, :, -2:].gather(-1, at[:, :, None].expand(-1, -1, min(2, exact.shape[2]), -1))
        torch.testing.assert_close(seen["rows"], rows, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen["state"]["place"], seen["positions"] + 1.0)  # state follows its tokens


@pytest.fixture
def bench(rig: Callable[..., Any]) -> Callable[..., Bench]:
    """Make a bench over a tiny Llama with two query heads per KV head."""

    def make(policy: Keeping | None, **options: Any) -> Bench:
        return Bench(rig("llama", num_kv_heads=2).model, policy, **options)

    return make


POLICIES = [
    pytest.param(policy, positions, id=f"{policy.__name__}-{positions}")
    for policy in (Keeping, Heaviest, AtRandom)
    for positions in ("true", "cache")
]


@pytest.mark.parametrize(("policy", "positions"), POLICIES)
def test_logits_are_those_of_masked_keys(bench: Any, policy: type[Keeping], positions: str) -> None:
    arena = bench(policy(positions=positions))
    led = Led(arena, 1, 40)
    arena.check((led, 23, "prompt"))
    assert led.slots == 10
    for _ in range(8):
        arena.check((led, 1, "decode"))
    arena.check((led, 9, "prompt"))  # the next turn


@pytest.mark.parametrize(("policy", "positions"), POLICIES)
def test_cuts_between_the_chunks_of_a_prompt(bench: Any, policy: type[Keeping], positions: str) -> None:
    arena = bench(policy(positions=positions))
    led = Led(arena, 1, 40)
    for length, stage in ((7, "chunk"), (11, "chunk"), (12, "chunk"), (1, "prompt"), (1, "decode"), (1, "decode")):
        arena.check((led, length, stage))


@pytest.mark.parametrize(("policy", "positions"), POLICIES)
def test_ragged_batches(bench: Any, policy: type[Keeping], positions: str) -> None:
    """Contexts of different lengths and stages; each row is what its context gives alone."""
    arena, alone = bench(policy(positions=positions)), bench(policy(positions=positions))
    plan = [
        [(1, 21, "prompt"), (2, 5, "chunk")],
        [(1, 1, "decode"), (2, 9, "chunk"), (3, 3, "prompt")],
        [(2, 4, "prompt"), (3, 1, "decode"), (1, 1, "decode")],
        [(1, 1, "decode"), (2, 1, "decode"), (3, 1, "decode")],
        [(3, 12, "prompt"), (1, 1, "decode"), (2, 1, "decode")],
        [(1, 1, "decode"), (2, 1, "decode"), (3, 1, "decode")],
    ]
    leds, others = ({n: Led(side, n, 60) for n in (1, 2, 3)} for side in (arena, alone))
    for batch in plan:
        arena.check(*[(leds[n], length, stage) for n, length, stage in batch])
        rows = arena.logits
        for row, (n, length, stage) in zip(rows, batch, strict=True):
            torch.testing.assert_close(alone.run((others[n], length, stage))[0], row, rtol=1e-5, atol=1e-5)
    used = sum(len(led.pages) for led in leds.values())
    assert used == sum(-(-led.slots // PAGE_SIZE) for led in leds.values()) == 3 * 3
    assert len(arena.free) == NUM_PAGES - used


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_groups_of_query_heads(rig: Any, kv_heads: int) -> None:
    arena = Bench(rig("qwen3", num_kv_heads=kv_heads).model, Heaviest())
    led = Led(arena, 1, 40)
    for length, stage in ((23, "prompt"), (1, "decode"), (1, "decode"), (4, "prompt")):
        arena.check((led, length, stage))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(rig: Any, dtype: str) -> None:
    model = rig("llama", num_kv_heads=2).model
    arena, exact = Bench(model, Keeping(), dtype=dtype), Bench(model, Keeping())
    leds = Led(arena, 1, 40), Led(exact, 1, 40)
    for length, stage in ((23, "prompt"), (1, "decode"), (1, "decode"), (4, "prompt")):
        near, true = (led.bench.run((led, length, stage)) for led in leds)
        assert near.dtype == getattr(torch, dtype) and not torch.equal(near.float(), true)
        assert (near.float() - true).abs().max() < 0.3 * true.abs().max()


def test_learned_positions_stay_true(rig: Any) -> None:
    arena = Bench(rig("opt").model, Heaviest())
    led = Led(arena, 1, 40)
    for length, stage in ((23, "prompt"), (1, "decode"), (1, "decode")):
        arena.check((led, length, stage))


@pytest.mark.parametrize("positions", ["true", "cache"])
def test_a_budget_that_is_never_reached_changes_no_bit(bench: Any, positions: str) -> None:
    arena = bench(Heaviest(budget=40, positions=positions))
    plain = bench(None, decoupled=positions == "cache")
    narrowed, whole = Led(arena, 1, 40), Led(plain, 1, 40)
    for length, stage in ((9, "chunk"), (14, "prompt"), *[(1, "decode")] * 4, (13, "prompt")):
        found = arena.run((narrowed, length, stage))
        segment = whole.segment(length, stage)
        segment.narrowing = None
        plain.executor.run(Batch([segment]))
        whole.after(length, None)
        assert torch.equal(found, plain.logits)
    assert narrowed.slots == 40


def test_ordinary_contexts_in_the_same_batch_are_as_ever(bench: Any) -> None:
    arena, plain = bench(Heaviest()), bench(None)
    led, others = Led(arena, 1, 40), (Led(arena, 2, 40), Led(plain, 2, 40))
    arena.run((led, 23, "prompt"))
    for length in (17, 1, 1):
        ordinary, alone = (other.segment(length, "prompt") for other in others)
        ordinary.narrowing = alone.narrowing = None
        narrowed = led.segment(1, "decode")
        result = arena.executor.run(Batch([narrowed, ordinary]))
        plain.executor.run(Batch([segment_of(narrowed, plain), alone]))
        assert set(result.slots) == {1}
        led.after(1, result.slots[1])
        for other in others:
            other.after(length, None)
        assert torch.equal(arena.logits[1], plain.logits[1])


def segment_of(segment: Segment, bench: Bench) -> Segment:
    """An ordinary segment as large as ``segment``, so that both batches have one shape."""
    table = np.array(bench.free[-len(segment.table) :], dtype=np.int32)
    return Segment(9, segment.log, segment.start, segment.length, table, sample=True)


def test_kept_rows_never_change_and_stay_if_they_can(bench: Any) -> None:
    arena = bench(AtRandom())
    led = Led(arena, 1, 60)

    def rows() -> dict[tuple[int, ...], tuple[int, Tensor]]:
        memory = arena.executor._lossy.memory(1)
        return {
            (layer, head, position): (slot, arena.pool[led.pages[slot // 4], layer, :, head, slot % 4].clone())
            for layer, planes in enumerate(memory.positions.tolist())
            for head, plane in enumerate(planes)
            for slot, position in enumerate(plane)
        }

    arena.run((led, 30, "prompt"))
    before = rows()
    for _ in range(12):
        arena.run((led, 1, "decode"))
        after = rows()
        assert len(after) == 3 * 2 * 10
        for place in before.keys() & after.keys():
            assert torch.equal(before[place][1], after[place][1])
            assert before[place][0] == after[place][0]
        before = after


def test_cache_positions_are_ascending(bench: Any) -> None:
    arena = bench(AtRandom(positions="cache"))
    led = Led(arena, 1, 60)
    for length, stage in ((30, "prompt"), (1, "decode"), (1, "decode")):
        arena.run((led, length, stage))
        positions = arena.policy.seen[101][-1]["positions"]
        assert bool((positions.diff(dim=-1) > 0).all())


def test_attention_is_watched_only_where_it_is_asked_for(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "attention_statistics", None)  # would fail if called
    arena = bench(AtRandom())
    led = Led(arena, 1, 40)
    arena.run((led, 20, "prompt"))
    arena.run((led, 1, "decode"))
    with pytest.raises(TypeError, match="not callable"):
        other = bench(Heaviest())
        other.run((Led(other, 1, 40), 20, "prompt"))
