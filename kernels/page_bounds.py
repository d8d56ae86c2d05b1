"""Bounds of attention scores by page (Quest): the least and largest value of each key channel in a page.

Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", ICML 2024, section 3.2. Plain torch
operations: the same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_call import DTYPES, check_tensor


def page_bounds(pool: Tensor, table: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Least and largest value of each key channel in the pages of one context.

    Parameters
    ----------
    pool: [num_pages, 2, num_kv_heads, page_size, head_dim], keys and values; float32, bfloat16 or float16.
    table: int32 or int64 [pages], as many as ``tokens`` fill.
    tokens: in these pages; the last one may be filled in part, and what stands behind is ignored, NaN included.

    Returns
    -------
    low, high: float32 [pages, num_kv_heads, head_dim].

    Raises
    ------
    ValueError: shapes or dtypes do not fit, or ``table`` has not ceil(tokens / page_size) pages.
    """
    check_tensor("pool", pool, (None, 2, None, None, None), DTYPES, None)
    check_tensor("table", table, (None,), (torch.int32, torch.int64), pool.device)
    page_size = pool.shape[3]
    if tokens < 0 or table.numel() != -(-tokens // page_size):
        raise ValueError(f"table has {table.numel()} pages: expected those of {tokens} tokens, {page_size} in a page")
    keys = pool[:, 0].index_select(0, table).float()
    last = tokens - (table.numel() - 1) * page_size
    if 0 < last < page_size:
        keys[-1, :, last:] = keys[-1, :, :1]  # repeats a key that counts already
    return keys.amin(2), keys.amax(2)


def page_scores(query: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """For each query head and page the most that query @ key can be: sum over channels of max(q * low, q * high).

    Parameters
    ----------
    query: float32 [num_heads, head_dim].
    low, high: float32 [pages, num_kv_heads, head_dim]; num_heads is a multiple of num_kv_heads.

    Returns
    -------
    float32 [num_heads, pages].

    Raises
    ------
    ValueError: shapes or dtypes do not fit.
    """
    check_tensor("query", query, (None, None), (torch.float32,), None)
    check_tensor("low", low, (None, None, query.shape[1]), (torch.float32,), query.device)
    check_tensor("high", high, tuple(low.shape), (torch.float32,), query.device)
    if low.shape[1] < 1 or query.shape[0] % low.shape[1]:
        raise ValueError(f"query has {query.shape[0]} heads: expected a multiple of the bounds' {low.shape[1]}")
    grouped = torch.unflatten(query, 0, (low.shape[1], query.shape[0] // low.shape[1]))
    above = torch.einsum("ghd,pgd->ghp", grouped.clamp(min=0), high)
    return (above + torch.einsum("ghd,pgd->ghp", grouped.clamp(max=0), low)).flatten(0, 1)
