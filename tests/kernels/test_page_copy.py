"""Copying pages between pools in a CPU's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kvarena.kernels import page_copy
from kvarena.kernels.native import library

LAYERS = 4


def native_copy(*arguments: Any) -> None:
    native = library()
    if native is None:
        pytest.skip("no C++ compiler")
    assert page_copy.native_copy(native, *arguments)


COPIES: dict[str, Callable[..., None]] = {
    "dispatched": page_copy.copy_pages,
    "index": page_copy.index_copy,
    "native": native_copy,
}


@pytest.fixture(params=sorted(COPIES))
def copy(request: pytest.FixtureRequest) -> Callable[..., None]:
    return COPIES[request.param]


def make_pools(dtype: torch.dtype = torch.float32, layers: int = LAYERS) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    shape = (layers, 2, 3, 5, 8)
    return torch.randn(9, *shape, generator=rng).to(dtype), torch.randn(13, *shape, generator=rng).to(dtype)


def slots(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("first", "count"), [(0, 4), (0, 1), (1, 2), (3, 1)])
def test_these_layers_of_these_pages_and_no_others(
    copy: Callable[..., None], first: int, count: int, dtype: torch.dtype
) -> None:
    source, target = make_pools(dtype)
    expected, before = target.clone(), source.clone()
    pairs = [(8, 0), (0, 12), (3, 5), (3, 6)]
    for start, end in pairs:
        expected[end, first : first + count] = source[start, first : first + count]
    froms, tos = (slots(*side) for side in zip(*pairs, strict=True))
    copy(source, target, froms, tos, first, count)
    assert torch.equal(target, expected) and torch.equal(source, before)


def test_slots_of_any_stride(copy: Callable[..., None]) -> None:
    source, target = make_pools()
    copy(source, target, slots(8, 99, 0, 99)[::2], slots(3, 99, 4, 99)[::2], 0, LAYERS)
    assert torch.equal(target[3], source[8]) and torch.equal(target[4], source[0])


def test_all_layers_unless_told() -> None:
    source, target = make_pools()
    page_copy.copy_pages(source, target, slots(1), slots(2))
    page_copy.copy_pages(source, target, slots(3), slots(4), 3)
    assert torch.equal(target[2], source[1])
    assert torch.equal(target[4, 3], source[3, 3]) and not torch.equal(target[4, 2], source[3, 2])


def test_no_page_is_a_no_op() -> None:
    source, target = make_pools()
    before = target.clone()
    page_copy.copy_pages(source, target, slots(), slots())
    assert torch.equal(target, before)


@pytest.mark.parametrize(
    ("froms", "tos", "message"),
    [
        (slots(0, 9), slots(0, 1), r"source_slots span 0\.\.9: expected 0\.\.8"),
        (slots(0, -1), slots(0, 1), r"source_slots span -1\.\.0: expected 0\.\.8"),
        (slots(0, 1), slots(13, 1), r"target_slots span 1\.\.13: expected 0\.\.12"),
        (slots(0, 1), slots(-2, 1), r"target_slots span -2\.\.1: expected 0\.\.12"),
        (slots(0), slots(0, 1), "1 source_slots for 2 target_slots"),
        (slots(0).astype(np.int64), slots(0), r"source_slots is int64 \(1,\): expected an int32 array"),
        (slots(0), slots(0)[None], r"target_slots is int32 \(1, 1\): expected an int32 array"),
        (slots(0), [0], "target_slots is list: expected an int32 array"),
    ],
)
def test_bad_slots_copy_nothing(froms: Any, tos: Any, message: str) -> None:
    source, target = make_pools()
    before = target.clone()
    with pytest.raises(ValueError, match=message):
        page_copy.copy_pages(source, target, froms, tos)
    assert torch.equal(target, before)


@pytest.mark.parametrize(("first", "count"), [(0, 5), (-1, 2), (4, 1), (2, 0), (3, 2)])
def test_bad_layers(first: int, count: int) -> None:
    source, target = make_pools()
    with pytest.raises(ValueError, match=r"expected some of 0\.\.3"):
        page_copy.copy_pages(source, target, slots(0), slots(0), first, count)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("source", lambda t: t[0], "source has shape"),
        ("target", lambda t: t[:, :3], r"target has shape .*: expected \(\*, 4, 2, 3, 5, 8\)"),
        ("target", lambda t: t.half(), "target has dtype torch.float16: expected torch.float32"),
        ("source", lambda t: torch.cat([t, t])[::2], "source is on cpu with strides"),
        ("target", lambda t: t.transpose(3, 4).contiguous().transpose(3, 4), "target"),
    ],
)
def test_bad_pools(name: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    source, target = make_pools()
    pools = {"source": source, "target": target}
    pools[name] = change(pools[name])
    with pytest.raises(ValueError, match=message):
        page_copy.copy_pages(pools["source"], pools["target"], slots(0), slots(0))
