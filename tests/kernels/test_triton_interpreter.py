"""The Triton kernels under Triton's interpreter, float32 and float16 (it computes garbage in bfloat16)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvarena.kernels.attention_call import AttentionCall

pytest.importorskip("triton")

Interpret = Callable[[str, dict[str, Any]], dict[str, Any]]


def check(interpret: Interpret, problems: Any, call: AttentionCall) -> None:
    fields = {name: getattr(call, name) for name in AttentionCall.__dataclass_fields__}
    problems.assert_close(problems.copy_call(call, **interpret("attention", fields)), rounds_keys=True)


SMALL = ((1, 20), (0, 3), (5, 30), (1, 0), (17, 0))


@pytest.mark.parametrize(
    "features",
    [
        {},
        {"dtype": torch.float16, "head_dim": 20, "lse": False},
        {"window": 9, "num_heads": 6, "page_size": 5},
        {"rotary_dim": 12, "softcap": 5.0},
    ],
    ids=str,
)
def test_small(interpret: Interpret, problems: Any, features: dict[str, Any]) -> None:
    check(interpret, problems, problems.make_call(SMALL, **features))


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (5, 1), (20, 1)], ids=str)
@pytest.mark.parametrize("page_size", [1, 16, 48])
@pytest.mark.parametrize("head_dim", [16, 80, 128])
def test_shapes(
    interpret: Interpret, problems: Any, heads: tuple[int, int], page_size: int, head_dim: int, dtype: torch.dtype
) -> None:
    segments = ((1, 70), (33, 40), (0, 7), (1, 131))
    call = problems.make_call(
        segments, num_heads=heads[0], num_kv_heads=heads[1], page_size=page_size, head_dim=head_dim, dtype=dtype
    )
    check(interpret, problems, call)


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "features",
    [
        {"window": 1},
        {"window": 40, "softcap": 30.0},
        {"window": 500},
        {"softcap": 0.7},
        {"rotary_dim": 32},
        {"rotary_dim": 12, "window": 33, "softcap": 5.0},
        {"aliased": True},
        {"spread": 12.0},
        {"head_dim": 256, "num_heads": 2, "num_kv_heads": 1},
    ],
    ids=str,
)
def test_features(interpret: Interpret, problems: Any, features: dict[str, Any], dtype: torch.dtype) -> None:
    segments = ((1, 63), (1, 64), (40, 0), (70, 90), (0, 0), (2, 150))
    check(interpret, problems, problems.make_call(segments, dtype=dtype, **features))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_write(interpret: Interpret, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    pool = torch.randn(9, 3, 2, 2, 5, 12, generator=rng).to(dtype)
    fused = torch.randn(6, 2, 2, 12, generator=rng).to(dtype)
    slots = torch.tensor([44, -1, 0, 7, -1, 13])
    expected = pool.clone()
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[slot // 5, 1, :, :, slot % 5] = fused[token]
    arguments = {"key": fused[:, 0], "value": fused[:, 1], "pool": pool[:, 1], "slots": slots}
    assert torch.equal(interpret("write", arguments)["pool"], expected[:, 1])
