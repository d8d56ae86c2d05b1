"""Compressed contexts against a dense computation whose keys and values are rounded in the open, as KIVI says."""

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

from kvarena.framework.execution.contract import Batch  # noqa: E402
from kvarena.framework.execution.lossy.codec_front import CodecFront, Layout, page_bytes_of  # noqa: E402
from kvarena.policies.compression.kivi import Kivi  # noqa: E402

LAYERS, KV_HEADS, HEAD_DIM = 3, 2, 16


def rounded(numbers: Tensor, bits: int, group: int) -> Tensor:
    """``numbers`` [..., n] in groups of ``group`` of the last dimension."""
    grouped = numbers.unflatten(-1, (-1, group))
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    return (((grouped - low) / scale).round() * scale + low).flatten(-2)


def follow(led: Led, kivi: Kivi) -> None:
    """After a prompt or a decoded token: what KIVI rounds of a context that lost nothing."""
    (keys, values), total, residual = led.dense.raw, led.tokens, kivi.residual
    due_keys, due_values = total // residual * residual, max(0, total - residual)
    led.dense.read = [keys.clone(), values.clone()]
    if due_keys:
        turned = rounded(keys[:, :, :due_keys].transpose(2, 3), kivi.bits, kivi.group)
        led.dense.read[0][:, :, :due_keys] = turned.transpose(2, 3)
    led.dense.read[1][:, :, :due_values] = rounded(values[:, :, :due_values], kivi.bits, kivi.group)


def slots_of(kivi: Kivi, total: int) -> int:
    packed = kivi.packed_tokens(total)
    native = 2 * LAYERS * KV_HEADS * HEAD_DIM * 4
    pages = -(-int(packed * kivi.bytes_per_token(native, 4)) // (PAGE_SIZE * native))
    return pages * PAGE_SIZE + total - packed


@pytest.fixture
def make(rig: Callable[..., Any]) -> Callable[..., Bench]:
    def made(compression: Kivi | None, **options: Any) -> Bench:
        model = rig("llama", num_kv_heads=KV_HEADS, hidden_size=64, intermediate_size=64).model
        return Bench(model, compression=compression, **options)

    return made


@pytest.mark.parametrize("kivi", [Kivi(2, 16, 16), Kivi(4, 8, 16), Kivi(2, 16, 32)], ids=str)
def test_logits_are_those_of_rounded_keys_and_values(make: Any, kivi: Kivi) -> None:
    arena = make(kivi)
    led = Led(arena, 1, 140)
    arena.check((led, 13, "chunk"))
    arena.check((led, 38, "prompt"))  # the whole prompt attends in full precision
    follow(led, kivi)
    for _ in range(40):
        arena.check((led, 1, "decode"))
        follow(led, kivi)
        assert led.slots == slots_of(kivi, led.tokens)
    arena.check((led, 21, "prompt"))  # the next turn attends to the rounded history
    follow(led, kivi)
    arena.check((led, 1, "decode"))
    assert led.slots == slots_of(kivi, led.tokens - 1) + 1
    assert led.slots < led.tokens
    assert len(arena.free) == NUM_PAGES - -(-led.slots // PAGE_SIZE)


def test_several_contexts_in_one_batch(make: Any) -> None:
    kivi = Kivi(2, 16, 16)
    arena = make(kivi)
    leds = {n: Led(arena, n, 140) for n in (1, 2, 3)}
    plan = [
        [(1, 40, "prompt"), (2, 5, "chunk")],
        [(1, 1, "decode"), (2, 60, "prompt"), (3, 15, "prompt")],
        [(2, 1, "decode"), (3, 1, "decode"), (1, 1, "decode")],
        [(3, 30, "prompt"), (1, 1, "decode"), (2, 1, "decode")],
        [(1, 1, "decode"), (2, 9, "prompt"), (3, 1, "decode")],
    ]
    for batch in plan:
        arena.check(*[(leds[n], length, stage) for n, length, stage in batch])
        for n, _, stage in batch:
            if stage != "chunk":
                follow(leds[n], kivi)
    assert all(led.memory.front_pages > 0 for led in leds.values())


@pytest.mark.parametrize("total", [20, 31])
def test_a_residual_that_is_never_reached_changes_no_bit(make: Any, total: int) -> None:
    arena, plain = make(Kivi(2, 16, 32)), make(None)
    led, whole = Led(arena, 1, 60), Led(plain, 1, 60)
    for length, stage in ((total - 4, "prompt"), *[(1, "decode")] * 4):
        found = arena.run((led, length, stage))
        segment = whole.segment(length, stage)
        segment.narrowing = None
        plain.executor.run(Batch([segment]))
        whole.after(length, None)
        assert torch.equal(found, plain.logits)
    assert led.slots == total


def test_what_is_due_but_frees_nothing_is_rounded_where_it_is(make: Any) -> None:
    kivi = Kivi(2, 16, 16)
    arena = make(kivi)
    led = Led(arena, 1, 60)
    arena.check((led, 18, "prompt"))  # keys of a block, values of two tokens
    follow(led, kivi)
    assert led.slots == 18
    for _ in range(3):
        arena.check((led, 1, "decode"))
        follow(led, kivi)


def test_bytes_in_the_front_are_those_per_token(make: Any) -> None:
    kivi = Kivi(4, 16, 16)
    arena = make(kivi)
    led = Led(arena, 1, 100)
    arena.run((led, 96, "prompt"))
    front = led.memory.front
    assert isinstance(front, CodecFront) and front.layout is not None
    assert front.columns == kivi.packed_tokens(96) == 80
    native = 2 * LAYERS * KV_HEADS * HEAD_DIM * 4
    held = sum(part.num_bytes for part in front.layout.parts) * LAYERS
    assert held == 80 * kivi.bytes_per_token(native, 4)
    assert front.pages == -(-held // (native * PAGE_SIZE))


def equal(count: int, *stages: str) -> Callable[[Any], Tensor | None]:
    return lambda view: torch.full((LAYERS, KV_HEADS), count) if view.stage in stages else None


def columns_of(led: Led) -> tuple[list[list[int]], list[Tensor]]:
    """Positions that each plane holds, and what its keys and values say now, in their order."""
    memory, pool = led.memory, led.bench.pool
    table = torch.tensor(led.pages, dtype=torch.int32)
    positions, numbers = [], []
    rows = led.bench.executor._lossy._narrower._rows
    both = []
    for value in (False, True):
        tail = rows.read(table, memory.front_pages * PAGE_SIZE, led.slots, value)
        if memory.front is not None:
            front = memory.front.values(pool, table) if value else memory.front.keys(pool, table)
            tail = torch.cat((front, tail), dim=2)
        both.append(tail)
    for plane in torch.cartesian_prod(torch.arange(LAYERS), torch.arange(KV_HEADS)).tolist():
        held = memory.positions[*plane]
        positions.append(held[held >= 0].tolist())
        numbers.append(torch.stack([each[*plane][held >= 0] for each in both]))
    return positions, numbers


def adopt(led: Led) -> None:
    """The dense computation reads what the cache says, and has lost what the cache has lost."""
    led.dense.alive[:] = False
    for plane, (positions, numbers) in enumerate(zip(*columns_of(led), strict=True)):
        at = divmod(plane, KV_HEADS)
        led.dense.alive[*at][positions] = True
        for held, now in zip(led.dense.read, numbers, strict=True):
            held[*at][positions] = now


def off(led: Led, which: int) -> Tensor:
    """How far the cache is from what was computed, by token and plane; 0 where a token has left."""
    error = (led.dense.read[which] - led.dense.raw[which]).abs().amax(-1)
    return error.masked_fill(~led.dense.alive, 0.0)


def test_survivors_of_a_prompt_are_packed_as_if_they_were_the_context(make: Any) -> None:
    kivi, policy = Kivi(2, 16, 16), Sizes(equal(50, "prompt"))
    arena = make(kivi, truncation=policy)
    led = Led(arena, 1, 120)
    arena.check((led, 70, "prompt"))
    adopt(led)
    assert led.slots == slots_of(kivi, 50)
    for plane in ((0, 0), (2, 1)):
        held = led.dense.alive[*plane].nonzero()[:, 0]
        assert len(held) == 50
        keys, values = (numbers[*plane][held] for numbers in led.dense.raw)
        expected = torch.cat((rounded(keys[:48].T, 2, 16).T, keys[48:]))
        torch.testing.assert_close(led.dense.read[0][*plane][held], expected, rtol=1e-4, atol=1e-4)
        expected = torch.cat((rounded(values[:34], 2, 16), values[34:]))
        torch.testing.assert_close(led.dense.read[1][*plane][held], expected, rtol=1e-4, atol=1e-4)
    for _ in range(20):
        arena.check((led, 1, "decode"))
        adopt(led)


@pytest.mark.parametrize("protected", [1, 40])
def test_tokens_leave_the_packed_part_while_decoding(make: Any, protected: int) -> None:
    kivi, policy = Kivi(2, 16, 16), Sizes(equal(80, "prompt", "decode"), protected=protected)
    arena = make(kivi, truncation=policy)
    led = Led(arena, 1, 160)
    arena.check((led, 110, "prompt"))
    adopt(led)
    kept: list[int] = []
    for _ in range(40):
        before = led.dense.read[0].clone()
        arena.check((led, 1, "decode"))
        adopt(led)
        kept.append(int(led.dense.alive[0, 0].sum()))
        assert led.dense.alive.sum(-1).eq(kept[-1]).all()
        assert led.slots < 80
        assert off(led, 1)[:, :, -10:].max() < 1e-4  # the newest values are as the model made them
        if protected == 40:  # only packed tokens leave: the others of their groups keep their codes and scales
            old = led.dense.alive[:, :, : led.tokens - 40]
            moved = (led.dense.read[0][:, :, :-1] - before)[:, :, : led.tokens - 40].abs().amax(-1)
            assert moved[old].max() < 1e-5
    assert set(kept[-30:]) == {80}  # at first a page more would be needed, so that nothing leaves yet


def test_planes_of_different_length_are_packed_too(make: Any) -> None:
    def sizes(view: Any) -> Tensor | None:
        return torch.tensor([[50, 30], [44, 61], [30, 39]]) if view.stage == "prompt" else None

    kivi, policy = Kivi(2, 16, 16), Sizes(sizes)
    arena = make(kivi, truncation=policy)
    led = Led(arena, 1, 160)
    arena.check((led, 80, "prompt"))
    adopt(led)
    assert led.dense.alive.sum(-1).tolist() == [[50, 30], [44, 61], [30, 39]]
    for _ in range(36):  # whole blocks are packed behind fronts of different length
        arena.check((led, 1, "decode"))
        adopt(led)
    counts = torch.tensor([[50, 30], [44, 61], [30, 39]]) - 30 + kivi.packed_tokens(30 + 36)
    assert torch.equal(led.memory.front.counts, counts)
    arena.check((led, 10, "prompt"))
    adopt(led)
    arena.check((led, 1, "decode"))


def test_a_layout_gives_back_what_was_written() -> None:
    rng = torch.Generator().manual_seed(2)
    parts = {
        "codes": torch.randint(-(2**31), 2**31 - 1, (3, 2, 5, 7), generator=rng, dtype=torch.int64).to(torch.int32),
        "scales": torch.randn(3, 2, 3, generator=rng).to(torch.bfloat16),
        "groups": torch.randint(0, 99, (3, 2, 5), generator=rng).to(torch.int16),
    }
    layout = Layout.of(parts)
    pages = page_bytes_of(torch.zeros(9, 3, 2, 2, 1, 8, dtype=torch.bfloat16))
    table = torch.tensor([4, 8, 0, 3, 5, 1], dtype=torch.int32)
    count = layout.pages(pages.shape[1])
    assert count == -(-3 * layout.layer_bytes // 192)
    layout.write(pages, table[:count], parts)
    for name, number in layout.read(pages, table[:count], None).items():
        assert torch.equal(number, parts[name])
    for layer in range(3):
        for name, number in layout.read(pages, table[:count], layer).items():
            assert torch.equal(number, parts[name][layer])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_16_bits_packed_numbers_are_those_that_were_rounded_in_place(make: Any, dtype: str) -> None:
    arena, kivi = make(Kivi(2, 16, 16), dtype=dtype), Kivi(2, 16, 16)
    led = Led(arena, 1, 80)
    arena.run((led, 47, "prompt"))  # keys of the second block are rounded, but not packed before its values are
    early = columns_of(led)[1][0]
    arena.run((led, 1, "decode"))
    late = columns_of(led)[1][0]
    assert led.memory.front.columns == kivi.packed_tokens(48) == 32 > kivi.packed_tokens(47)
    assert torch.equal(late[0][:32], early[0][:32])
    assert torch.equal(late[1][:31], early[1][:31])
    assert led.slots < 48
