"""Writing keys and values into a paged pool on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kvarena.kernels import cache_write

Write = Callable[[Tensor, Tensor, Tensor, Tensor], None]


@pytest.fixture(params=["dispatched", "index"])
def write(request: pytest.FixtureRequest) -> Write:
    return cache_write.write_pages if request.param == "dispatched" else cache_write.index_write


def make_write(
    tokens: int, dtype: torch.dtype = torch.float32, page_size: int = 5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(tokens)
    pool = torch.randn(2 + 2 * tokens // page_size, 3, 2, 4, page_size, 6, generator=rng).to(dtype)
    fused = torch.randn(tokens, 3, 4, 6, generator=rng).to(dtype)
    slots = torch.randperm(pool.shape[0] * page_size, generator=rng)[:tokens]
    slots[::3] = -1
    return fused[:, 1], fused[:, 2], pool, slots


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 3000])
def test_writes_these_slots_and_no_others(write: Write, tokens: int, dtype: torch.dtype) -> None:
    key, value, pool, slots = make_write(tokens, dtype)
    expected = pool.clone()
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[slot // 5, 1, 0, :, slot % 5] = key[token]
            expected[slot // 5, 1, 1, :, slot % 5] = value[token]
    write(key, value, pool[:, 1], slots)
    assert torch.equal(pool, expected)


def test_nothing_to_write() -> None:
    key, value, pool, slots = make_write(4)
    before = pool.clone()
    cache_write.write_pages(key[:0], value[:0], pool[:, 1], slots[:0])
    cache_write.write_pages(key, value, pool[:, 1], torch.full_like(slots, -1))
    assert torch.equal(pool, before)


@pytest.mark.parametrize(("slot", "span"), [(-2, "-2..3"), (15, "0..15")])
def test_slot_out_of_range_writes_nothing(slot: int, span: str) -> None:
    key, value, pool, _ = make_write(4)
    before = pool.clone()
    with pytest.raises(ValueError, match=rf"slots span {span}: expected -1..14"):
        cache_write.write_pages(key, value, pool[:, 1], torch.tensor([0, 1, 3, slot]))
    assert torch.equal(pool, before)


BAD = [
    ("key", lambda t: t[:3], r"key has shape \(3, 4, 6\): expected \(4, 4, 6\)"),
    ("value", lambda t: t.half(), "value has dtype torch.float16: expected torch.float32"),
    ("slots", lambda t: t.int(), "slots has dtype torch.int32: expected torch.int64"),
    ("pool", lambda t: t[0], r"pool has shape .*: expected \(\*, 2, \*, \*, \*\)"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_bad_arguments(name: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    key, value, pool, slots = make_write(4)
    arguments: dict[str, Any] = {"key": key, "value": value, "pool": pool[:, 1], "slots": slots}
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=message):
        cache_write.write_pages(**arguments)
