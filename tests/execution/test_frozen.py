"""Planes of different length, packed into front pages, against a dense computation masked layer by layer and head by
head."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parent))
from lossy_bench import NUM_PAGES, PAGE_SIZE, Bench, Led, Sizes  # noqa: E402
from torch import Tensor  # noqa: E402

from kvarena.framework.execution.attention import FormedPart, PagedContext  # noqa: E402
from kvarena.framework.execution.lossy.frozen import PlaneAttending, PlaneFront  # noqa: E402
from kvarena.framework.execution.lossy.selecting import SelectingAttending  # noqa: E402

LAYERS, KV_HEADS = 3, 2


def ragged(low: int, high: int, *stages: str) -> Callable[[Any], Tensor | None]:
    """``low`` .. ``high`` tokens of each plane at ``stages``, some of both ends."""

    def sizes(view: Any) -> Tensor | None:
        if view.stage not in stages:
            return None
        drawn = torch.randint(low, high + 1, (LAYERS, KV_HEADS), generator=torch.Generator().manual_seed(view.tokens))
        drawn[0, 0], drawn[-1, -1] = low, high
        return drawn

    return sizes


def follow(arena: Bench, led: Led, policy: Sizes) -> bool:
    """Check what the policy saw; whether the cut was made, which the dense computation then follows."""
    seen = policy.seen[100 + led.number]
    held = seen["positions"] >= 0
    at = seen["positions"].clamp(min=0)
    for plane in torch.cartesian_prod(torch.arange(LAYERS), torch.arange(KV_HEADS)).tolist():
        positions = seen["positions"][*plane][held[*plane]]
        assert positions.sort().values.tolist() == led.dense.alive[*plane].nonzero()[:, 0].tolist()
        torch.testing.assert_close(seen["place"][*plane][held[*plane]], positions + 1.0)
    if "column_sums" in seen:
        exact = torch.stack(led.dense.probabilities)
        group = exact.shape[1] // KV_HEADS
        wide, filled = at.repeat_interleave(group, 1), held.repeat_interleave(group, 1)
        sums = exact.sum(2).gather(-1, wide)
        torch.testing.assert_close(seen["column_sums"][filled], sums[filled], rtol=1e-3, atol=1e-5)
        rows = exact[:, :, -2:].gather(-1, wide[:, :, None].expand(-1, -1, min(2, exact.shape[2]), -1))
        filled = filled[:, :, None].expand_as(rows)
        torch.testing.assert_close(seen["rows"][filled], rows[filled], rtol=1e-3, atol=1e-5)
    if seen["keep"] is None:
        return False
    now = torch.zeros_like(led.dense.alive, dtype=torch.int64)
    now.scatter_add_(-1, led.memory.positions.clamp(min=0), (led.memory.positions >= 0).long())
    cut = not torch.equal(now.bool(), led.dense.alive)
    if cut:
        kept = torch.zeros_like(now).scatter_add_(-1, at, seen["keep"].long())
        assert torch.equal(now, kept)
        led.dense.alive = kept.bool()
    return cut


@pytest.fixture
def make(rig: Any) -> Callable[..., tuple[Bench, Sizes]]:
    def made(sizes: Any, watch: bool = True, **options: Any) -> tuple[Bench, Sizes]:
        policy = Sizes(sizes, watch)
        return Bench(rig("llama", num_kv_heads=KV_HEADS).model, truncation=policy, **options), policy

    return made


def pages_of(counts: Tensor) -> int:
    """Front pages that planes of ``counts`` tokens take."""
    plane_pages = sum(-(-count // PAGE_SIZE) for count in counts.flatten().tolist())
    return -(-plane_pages // counts.numel())


@pytest.mark.parametrize("watch", [True, False])
def test_logits_and_statistics_are_those_of_masked_keys(make: Any, watch: bool) -> None:
    arena, policy = make(ragged(3, 20, "prompt"), watch)
    led = Led(arena, 1, 80)
    arena.check((led, 40, "prompt"))
    assert follow(arena, led, policy)
    front = pages_of(policy.seen[101]["keep"].sum(-1))
    assert led.slots == front * PAGE_SIZE < 40
    assert len(arena.free) == NUM_PAGES - front
    for step in range(7):
        arena.check((led, 1, "decode"))
        follow(arena, led, policy)
        assert led.slots == front * PAGE_SIZE + step + 1
    arena.check((led, 9, "chunk"))  # the next turn reads frozen planes and the tail
    follow(arena, led, policy)
    arena.check((led, 5, "prompt"))  # and packs both again
    assert follow(arena, led, policy)
    assert led.memory.front_pages * PAGE_SIZE == led.slots
    arena.check((led, 1, "decode"))


def test_cuts_at_every_step(make: Any) -> None:
    arena, policy = make(ragged(2, 9, "chunk", "prompt", "decode"))
    led = Led(arena, 1, 80)
    cuts = 0
    for length, stage in ((7, "chunk"), (15, "chunk"), (8, "prompt"), *[(1, "decode")] * 12, (11, "prompt")):
        arena.check((led, length, stage))
        cuts += follow(arena, led, policy)
    assert cuts > 8
    assert led.slots <= 8 + 6


def test_several_contexts_in_one_batch_are_what_they_are_alone(make: Any) -> None:
    sizes = ragged(2, 12, "prompt")
    (arena, policy), (other, _) = make(sizes), make(sizes)
    plan = [
        [(1, 21, "prompt"), (2, 5, "chunk")],
        [(1, 1, "decode"), (2, 19, "prompt"), (3, 30, "prompt")],
        [(2, 1, "decode"), (3, 1, "decode"), (1, 1, "decode")],
        [(3, 30, "prompt"), (1, 1, "decode"), (2, 4, "chunk")],
        [(1, 1, "decode"), (2, 1, "prompt"), (3, 1, "decode")],
    ]
    leds, alone = ({n: Led(side, n, 80) for n in (1, 2, 3)} for side in (arena, other))
    for batch in plan:
        arena.check(*[(leds[n], length, stage) for n, length, stage in batch])
        rows = arena.logits
        for row, (n, length, stage) in zip(rows, batch, strict=True):
            follow(arena, leds[n], policy)
            torch.testing.assert_close(other.run((alone[n], length, stage))[0], row, rtol=1e-5, atol=1e-5)


def test_equal_counts_are_ordinary_slots_again(make: Any) -> None:
    def sizes(view: Any) -> Tensor | None:
        return ragged(2, 12, "prompt")(view) if view.tokens < 40 else torch.full((LAYERS, KV_HEADS), 2)

    arena, policy = make(sizes)
    led = Led(arena, 1, 80)
    for length in (30, 11):
        arena.check((led, length, "prompt"))
        assert follow(arena, led, policy)
    assert led.memory.front is None
    assert led.slots == 2
    arena.check((led, 1, "decode"))


def test_nothing_is_cut_where_packing_would_take_more_slots(make: Any) -> None:
    arena, policy = make(ragged(8, 9, "prompt"))
    led = Led(arena, 1, 20)
    arena.check((led, 9, "prompt"))  # 9 slots; planes of 8 and 9 tokens would take 3 pages
    assert not follow(arena, led, policy)
    assert led.slots == 9
    assert led.memory.front is None


def test_positions_by_cache_are_refused(rig: Any) -> None:
    policy = Sizes(ragged(2, 9, "prompt"))
    policy.positions = "cache"
    arena = Bench(rig("llama", num_kv_heads=KV_HEADS).model, truncation=policy, decoupled=True)
    with pytest.raises(ValueError, match="positions=cache and keeps different numbers of tokens"):
        arena.run((Led(arena, 1, 40), 30, "prompt"))


def test_a_front_holds_what_was_written() -> None:
    rng = torch.Generator().manual_seed(5)
    pool = torch.full((12, LAYERS, 2, KV_HEADS, PAGE_SIZE, 8), float("nan"))
    counts = torch.tensor([[1, 9], [4, 5], [0, 8]])
    front = PlaneFront.of(counts, PAGE_SIZE)
    assert front.columns == 9
    assert front.pages == pages_of(counts) == 2  # 1 + 3 + 1 + 2 + 0 + 2 plane-pages in pages of 6
    table = torch.tensor([7, 2], dtype=torch.int32)
    keys, values = (torch.randn(LAYERS, KV_HEADS, 9, 8, generator=rng) for _ in range(2))
    front.write(pool, table, keys, values)
    behind = (torch.arange(9) >= counts[..., None])[..., None]
    for read, numbers in ((front.keys, keys), (front.values, values)):
        assert torch.equal(read(pool, table), numbers.masked_fill(behind, 0.0))
        assert torch.equal(read(pool, table, 1), numbers.masked_fill(behind, 0.0)[1])
    untouched = [page for page in range(12) if page not in (2, 7)]
    assert pool[untouched].isnan().all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_16_bits_a_front_says_what_its_tokens_said(rig: Any, dtype: str) -> None:
    policy = Sizes(ragged(3, 20, "prompt"), watch=False)
    arena = Bench(rig("llama", num_kv_heads=KV_HEADS).model, truncation=policy, dtype=dtype)
    led = Led(arena, 1, 60)
    arena.run((led, 40, "prompt"))
    assert led.memory.front is not None
    found, exact = arena.run((led, 1, "decode"))[0].float(), led.dense
    exact.step(led.ids[:40].tolist())
    held = policy.seen[101]["positions"][..., :-1]  # without the token itself
    kept = torch.zeros_like(exact.alive, dtype=torch.int64)
    kept.scatter_add_(-1, held.clamp(min=0), (held >= 0).long())
    assert 3 <= kept.sum(-1).min() < kept.sum(-1).max() <= 20
    exact.alive = kept.bool()
    assert (found - exact.step(led.ids[40:41].tolist())).abs().max() < 0.15


class Gate:
    """Writes down what was waited for."""

    def __init__(self) -> None:
        self.layers: list[int] = []

    def attend(self, layer: int) -> None:
        self.layers.append(layer)


@pytest.mark.parametrize(("form", "layers"), [(PlaneAttending, {0, 1, 2}), (SelectingAttending, {1})])
def test_a_front_is_read_when_all_layers_of_its_pages_have_arrived(form: type, layers: set[int]) -> None:
    none, gate = torch.empty(0), Gate()
    part = FormedPart(none, form.__new__(form))
    pool = torch.empty(1, LAYERS, 2, 1, 1, 1)
    PagedContext(pool, none, none, none, none, gate=gate, rows=none, formed=(part,))._wait(1)
    assert set(gate.layers) == layers
