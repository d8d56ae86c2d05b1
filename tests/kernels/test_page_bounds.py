"""Bounds by page: never below a true score, and as tight as the page's channels allow."""

from __future__ import annotations

import pytest
import torch

from kvarena.kernels.page_bounds import page_bounds, page_scores


def make(tokens: int, page_size: int = 4, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """A pool whose unwritten slots are NaN, the table of a context, and its keys [tokens, 2, 8]."""
    rng = torch.Generator().manual_seed(tokens)
    pool = torch.full((20, 3, 2, 2, page_size, 8), float("nan"), dtype=dtype)[:, 1]
    table = torch.randperm(20, generator=rng, dtype=torch.int32)[: -(-tokens // page_size)]
    keys = torch.randn(tokens, 2, 8, generator=rng).to(dtype)
    at = torch.arange(tokens)
    pool[table[at // page_size].long(), 0, :, at % page_size] = keys
    return pool, table, keys


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 4, 5, 31, 32])
def test_bounds_equal_a_loop_over_tokens(tokens: int, dtype: torch.dtype) -> None:
    pool, table, keys = make(tokens, dtype=dtype)
    low, high = page_bounds(pool, table, tokens)
    for page in range(len(table)):
        held = keys[page * 4 : page * 4 + 4].float()
        assert torch.equal(low[page], held.amin(0))
        assert torch.equal(high[page], held.amax(0))


@pytest.mark.parametrize("tokens", [3, 30])
def test_a_score_is_never_below_the_best_key_of_its_page(tokens: int) -> None:
    pool, table, keys = make(tokens)
    query = torch.randn(6, 8, generator=torch.Generator().manual_seed(9))
    scores = page_scores(query, *page_bounds(pool, table, tokens))
    assert scores.shape == (6, len(table))
    for head in range(6):
        true = keys[:, head // 3] @ query[head]
        for page in range(len(table)):
            assert scores[head, page] >= true[page * 4 : page * 4 + 4].max() - 1e-5
            held = keys[page * 4 : page * 4 + 4, head // 3]
            spelled_out = torch.maximum(query[head] * held.amin(0), query[head] * held.amax(0)).sum()
            torch.testing.assert_close(scores[head, page], spelled_out, rtol=1e-5, atol=1e-5)


def test_no_tokens_have_no_bounds() -> None:
    pool, table, _ = make(4)
    assert page_bounds(pool, table[:0], 0)[0].shape == (0, 2, 8)


def test_bad_arguments_are_refused() -> None:
    pool, table, _ = make(9)
    with pytest.raises(ValueError, match="table has 3 pages: expected those of 13 tokens"):
        page_bounds(pool, table, 13)
    low, high = page_bounds(pool, table, 9)
    with pytest.raises(ValueError, match="query has 5 heads: expected a multiple of the bounds' 2"):
        page_scores(torch.zeros(5, 8), low, high)
    with pytest.raises(ValueError, match="high has shape"):
        page_scores(torch.zeros(4, 8), low, high[:1])
