"""Un-rotated queries and log-sum-exps as policies see them, against hooks on the model and a dense computation."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parent))
from lossy_bench import Bench, Led  # noqa: E402
from torch import Tensor  # noqa: E402

from kvarena.framework.execution.rotation import rotation_of  # noqa: E402
from kvarena.framework.execution.torch_executor import TorchExecutor  # noqa: E402
from kvarena.framework.policy import ALL_QUERIES, Needs, TokenTruncation  # noqa: E402

LENGTH = 26
PLAN = [(3, "chunk"), (14, "chunk"), (1, "prompt"), (1, "decode"), (1, "decode"), (6, "prompt")]
BATCHES = [
    [(1, 21, "prompt"), (2, 5, "chunk")],
    [(1, 1, "decode"), (2, 9, "chunk")],
    [(2, 4, "prompt"), (1, 1, "decode")],
]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_kv_heads": 2}),
    "llama3": ("llama", {"config": {"rope_parameters": LLAMA3}}),
    "yarn": ("llama", {"config": {"rope_parameters": YARN}}),
    "partial": ("phi", {"num_kv_heads": 2, "config": {"rope_parameters": PARTIAL}}),
    "norm": ("qwen3", {"num_kv_heads": 2}),
    "neighbours": ("cohere", {}),
    "some layers": ("smollm3", {"config": {"no_rope_layers": [1, 0, 1]}}),
    "none": ("opt", {}),
}


@dataclass
class Noting(TokenTruncation):
    """Keeps what ``masks`` has for it; notes what it sees."""

    asks: Needs = field(default_factory=lambda: Needs(log_sum_exp=True, queries=ALL_QUERIES))
    positions: Literal["true", "cache"] = "true"
    budget: int | None = None
    ragged: bool = False
    seen: dict[int, list[Any]] = field(default_factory=dict)
    name = "noting"

    @property
    def needs(self) -> Needs:
        return self.asks

    def keep(self, view: Any) -> Tensor | None:
        asked = view.unrotated_queries if self.asks.queries else None
        lse = view.log_sum_exp if self.asks.log_sum_exp else None
        self.seen.setdefault(view.conversation - 100, []).append((asked, lse))
        if self.budget is None:
            return None
        score = torch.rand(view.positions.shape, generator=torch.Generator().manual_seed(view.tokens))
        score[view.positions < 0] = -1.0
        score[view.positions >= view.tokens - 1] = 2.0
        sizes = torch.full(view.positions.shape[:2], self.budget)
        if self.ragged:
            sizes[0, 0], sizes[1, -1] = self.budget // 2, self.budget - 1
        rank = score.argsort(dim=-1, descending=True).argsort(dim=-1)
        return (rank < sizes[..., None]) & (view.positions >= 0)

    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Any) -> float:
        return cached_tokens


def hooked(model: Any, ids: np.ndarray) -> Tensor:
    """[L, H, tokens, head_dim]: what comes out of each layer's ``q_proj`` (or the norm behind it)."""
    module, found = copy.deepcopy(model.module), []
    module.set_attn_implementation("eager")
    hooks = [
        (getattr(child, "q_norm", None) or child.q_proj).register_forward_hook(lambda _m, _i, out: found.append(out))
        for child in module.modules()
        if hasattr(child, "q_proj")
    ]
    with torch.inference_mode():
        module(input_ids=torch.tensor(ids[None]), use_cache=False)
    assert len(hooks) == model.shape.num_layers
    heads, width = model.shape.num_heads, model.shape.head_dim
    return torch.stack([out[0].reshape(len(ids), heads, width).transpose(0, 1) for out in found])


@pytest.mark.parametrize("name", MODELS)
def test_queries_are_those_before_rotation(rig: Any, name: str) -> None:
    architecture, knobs = MODELS[name]
    model = rig(architecture, **knobs).model
    exact = hooked(model, Led(Bench(model), 1, LENGTH).ids)
    if name == "none":
        exact = exact * model.shape.head_dim**-0.5  # OPT scales in front of attention, whose scale is then 1
    arena = Bench(model, truncation=(policy := Noting()))
    led = Led(arena, 1, LENGTH)
    for length, stage in PLAN:
        arena.run((led, length, stage))
    asked = torch.cat([queries for queries, _ in policy.seen[1]], dim=2)
    assert asked.dtype == torch.float32
    torch.testing.assert_close(asked, exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("name", ["llama", "yarn", "partial", "neighbours", "some layers"])
def test_the_rotation_is_the_models(rig: Any, name: str) -> None:
    """Forwards: what the executor's attention gets of the same queries."""
    architecture, knobs = MODELS[name]
    model = rig(architecture, **knobs).model
    rotation = rotation_of(model)
    assert rotation is not None
    assert rotation.pairs == (name == "neighbours") and rotation.rotates == (True, name != "some layers", True)
    ids = Led(Bench(model), 1, LENGTH).ids
    still, heard = hooked(model, ids), []
    arena = Bench(model, truncation=Noting(asks=Needs()))
    arena.attended = lambda layer, segments, query, *_: heard.append(query.transpose(0, 1).clone())  # type: ignore[method-assign]
    arena.run((Led(arena, 1, LENGTH), LENGTH, "prompt"))
    turned = rotation.turned(still, torch.arange(LENGTH))
    torch.testing.assert_close(turned, torch.stack(heard), rtol=1e-4, atol=1e-4 * float(still.abs().max()))
    many = torch.stack([rotation.turned(still, torch.full((LENGTH,), place)) for place in range(5, 12)]).mean(0)
    torch.testing.assert_close(rotation.averaged(still, 5, 7), many, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rotation.undone(turned, torch.arange(LENGTH)), still, rtol=1e-4, atol=1e-4)


def test_places_beyond_the_models_positions(rig: Any) -> None:
    """A policy looks ahead further than the model goes."""
    rotation = rotation_of(rig("llama", max_positions=32).model)
    assert rotation is not None
    assert rotation.averaged(torch.randn(3, 4, 2, 8), 30, 512).isfinite().all()
    assert rotation_of(rig("opt").model) is None


def test_the_last_queries_of_each_segment(rig: Any) -> None:
    model = rig("llama", num_kv_heads=2).model
    few, all_of_them = Noting(asks=Needs(queries=4)), Noting(asks=Needs(queries=ALL_QUERIES))
    for policy in (few, all_of_them):
        arena = Bench(model, truncation=policy)
        leds = {n: Led(arena, n, 40) for n in (1, 2)}
        for batch in BATCHES:
            arena.run(*[(leds[n], length, stage) for n, length, stage in batch])
    for n in (1, 2):
        for (last, _), (whole, lse) in zip(few.seen[n], all_of_them.seen[n], strict=True):
            assert lse is None and last.shape[2] == min(4, whole.shape[2])
            torch.testing.assert_close(last, whole[:, :, -4:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["true", "cache", "ragged"])
def test_what_is_cut_does_not_touch_queries_in_the_first_layer(rig: Any, kind: str) -> None:
    """Later layers see what attention of fewer keys gave; the first sees the tokens alone, whatever the form."""
    model = rig("llama", num_kv_heads=2).model
    place: Any = "cache" if kind == "cache" else "true"
    policy = Noting(positions=place, budget=9, ragged=kind == "ragged")
    arena = Bench(model, truncation=policy, decoupled=kind == "cache")
    leds = {n: Led(arena, n, 40) for n in (1, 2)}
    for batch in BATCHES:
        arena.run(*[(leds[n], length, stage) for n, length, stage in batch])
    assert (leds[1].memory.front is not None) == (kind == "ragged")
    for n, led in leds.items():
        asked = torch.cat([queries for queries, _ in policy.seen[n]], dim=2)
        exact = hooked(model, led.ids[: led.tokens])
        torch.testing.assert_close(asked[0], exact[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["true", "cache"])
def test_half_precision(rig: Any, positions: Any) -> None:
    model = rig("llama", num_kv_heads=2).model
    policy = Noting(positions=positions)
    arena = Bench(model, truncation=policy, dtype="bfloat16", decoupled=positions == "cache")
    arena.run((led := Led(arena, 1, LENGTH), LENGTH, "prompt"))
    exact, (asked, lse) = hooked(model, led.ids), policy.seen[1][0]
    assert asked.dtype == lse.dtype == torch.float32
    assert (asked[0] - exact[0]).abs().max() < 0.03 * exact[0].abs().max()


@pytest.mark.parametrize("kind", ["uniform", "ragged"])
def test_log_sum_exps(rig: Any, kind: str) -> None:
    """exp(score - log-sum-exp) are the probabilities: scores from the keys and the queries that the policy sees."""
    model = rig("llama", num_kv_heads=2).model
    rotation = rotation_of(model)
    assert rotation is not None
    checked: list[int] = []

    class Checking(Noting):
        def keep(self, view: Any) -> Tensor | None:
            place = torch.arange(view.tokens - view.queries, view.tokens)
            query = rotation.turned(view.unrotated_queries, place)
            keys, where = (t.repeat_interleave(2, dim=1) for t in (view.keys(), view.positions))
            scores = query @ keys.mT * model.shape.head_dim**-0.5
            hidden = (where < 0)[:, :, None] | (where[:, :, None] > place[:, None])
            exact = scores.masked_fill(hidden, float("-inf")).logsumexp(dim=-1)
            torch.testing.assert_close(view.log_sum_exp, exact, rtol=1e-4, atol=1e-4)
            checked.append(view.queries)
            return super().keep(view)

    policy = Checking(budget=9, ragged=kind == "ragged")
    arena = Bench(model, truncation=policy)
    leds = {n: Led(arena, n, 60) for n in (1, 2)}
    for batch in [*BATCHES, [(1, 1, "decode"), (2, 1, "decode")], [(1, 7, "prompt"), (2, 3, "prompt")]]:
        arena.run(*[(leds[n], length, stage) for n, length, stage in batch])
    assert sorted(checked) == [1, 1, 1, 1, 3, 4, 5, 7, 9, 21]


def test_log_sum_exps_of_rotated_keys(rig: Any) -> None:
    """Cached un-rotated and rotated where attention reads them: the same numbers while nothing left."""
    model = rig("llama", num_kv_heads=2).model
    true, by_place = Noting(), Noting(positions="cache")
    for policy in (true, by_place):
        arena = Bench(model, truncation=policy, decoupled=policy is by_place)
        led = Led(arena, 1, LENGTH)
        for length, stage in PLAN:
            arena.run((led, length, stage))
    for (asked, lse), (other, likewise) in zip(true.seen[1], by_place.seen[1], strict=True):
        assert lse.shape == asked.shape[:3]
        torch.testing.assert_close(asked, other, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(lse, likewise, rtol=1e-4, atol=1e-4)


def test_notes_stay_with_their_context(rig: Any) -> None:
    class Counting(Noting):
        def observe(self, view: Any) -> None:
            view.notes["steps"] = view.notes.get("steps", torch.zeros(1)) + 1

    policy = Counting(asks=Needs(), budget=5)
    arena = Bench(rig("llama", num_kv_heads=2).model, truncation=policy)
    leds = {n: Led(arena, n, 40) for n in (1, 2)}
    arena.run((leds[1], 12, "prompt"))
    arena.run((leds[1], 1, "decode"), (leds[2], 9, "prompt"))
    assert [int(leds[n].memory.notes["steps"]) for n in (1, 2)] == [2, 1]
    arena.executor.forget(1)
    assert leds[1].memory is None


def test_what_was_not_asked_for(rig: Any) -> None:
    for asks, name, lack in (
        (Needs(queries=1), "log_sum_exp", "log_sum_exp=True"),
        (Needs(log_sum_exp=True), "unrotated_queries", "queries > 0"),
    ):

        class Greedy(Noting):
            def keep(self, view: Any, name: str = name) -> None:
                getattr(view, name)

        arena = Bench(rig("llama").model, truncation=Greedy(asks=asks))
        with pytest.raises(ValueError, match=f"did not ask for: its needs lack {lack}"):
            arena.run((Led(arena, 1, 9), 9, "prompt"))
    for name in ("rows", "queries"):
        with pytest.raises(ValueError, match=f"needs.{name} is -1; it must be at least 0"):
            Needs(**{name: -1})


def test_a_rotation_that_nobody_knows_is_refused(rig: Any) -> None:
    model = rig("llama").model
    module = copy.deepcopy(model.module)
    rotary = module.model.rotary_emb
    forward = rotary.forward
    rotary.forward = lambda x, position_ids: [t * (1 + t.cumsum(-1)) for t in forward(x, position_ids)]
    odd = copy.copy(model)
    object.__setattr__(odd, "module", module)
    with pytest.raises(ValueError, match="some layers of 'test' rotate their queries in a way of their own"):
        TorchExecutor(odd, 8, 4, truncation=Noting())
    TorchExecutor(odd, 8, 4, truncation=Noting(asks=Needs(column_sums=True)))
