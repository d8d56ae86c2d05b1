"""Attention over two sets of keys from the attention over each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvarena.kernels.merge_states import merge_states

INF = float("inf")


def part(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of query [tokens, heads, dim] over keys and values [keys, heads, dim] in float64, and its LSE."""
    scores = torch.einsum("thd,khd->thk", query.double(), keys.double())
    out = torch.einsum("thk,khd->thd", scores.softmax(-1), values.double())
    return out, scores.logsumexp(-1)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 5e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_equals_attention_over_the_union(dtype: torch.dtype, error: float, spread: float) -> None:
    rng = torch.Generator().manual_seed(3)
    query, keys, values = (torch.randn(n, 3, 8, generator=rng) for n in (5, 40, 40))
    query = query * spread
    whole, total = part(query, keys, values)
    (a, lse_a), (b, lse_b) = part(query, keys[:7], values[:7]), part(query, keys[7:], values[7:])
    out, lse = merge_states(a.to(dtype), lse_a.float(), b.to(dtype), lse_b.float())
    assert out.dtype == dtype
    assert (out.double() - whole).abs().max() < error * 2
    torch.testing.assert_close(lse.double(), total, rtol=1e-6, atol=1e-6)


def test_a_part_without_keys_changes_nothing_whatever_its_output() -> None:
    out, lse = torch.randn(4, 2, 8), torch.randn(4, 2)
    empty = torch.full_like(out, float("nan")), torch.full_like(lse, -INF)
    for merged in (merge_states(out, lse, *empty), merge_states(*empty, out, lse)):
        assert torch.equal(merged[0], out)
        assert torch.equal(merged[1], lse)


def test_two_empty_parts_are_zero_and_minus_infinity() -> None:
    empty = torch.full((2, 1, 4), float("nan")), torch.full((2, 1), -INF)
    out, lse = merge_states(*empty, *empty)
    assert torch.equal(out, torch.zeros(2, 1, 4))
    assert torch.equal(lse, torch.full((2, 1), -INF))


def test_bad_arguments_are_refused() -> None:
    out, lse = torch.zeros(4, 2, 8), torch.zeros(4, 2)
    with pytest.raises(ValueError, match="other_out has shape"):
        merge_states(out, lse, out[:3], lse)
    with pytest.raises(ValueError, match="other_lse has dtype"):
        merge_states(out, lse, out, lse.double())
    with pytest.raises(ValueError, match="lse has shape"):
        merge_states(out, lse[:, :1], out, lse)
