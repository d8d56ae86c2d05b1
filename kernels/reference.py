"""Paged attention spelled out in float64: what every implementation is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def reference_attention(
    query: Tensor,
    pool: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    positions: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    key_cos: Tensor | None = None,
    key_sin: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`paged_attention` of CPU tensors in float64.

    Returns
    -------
    [num_tokens, num_heads, head_dim] and the scores' log-sum-exp [num_tokens, num_heads].
    """
    out = torch.zeros(query.shape, dtype=torch.float64)
    lse = torch.zeros(query.shape[:2], dtype=torch.float64)
    starts = query_starts.tolist()
    for segment, position in enumerate(positions.tolist()):
        rows = slice(starts[segment], starts[segment + 1])
        query_at = torch.arange(position, position + rows.stop - rows.start)
        if len(query_at) == 0:
            continue
        first = 0 if window is None else max(0, position + 1 - window)
        key_at = torch.arange(first, position + len(query_at))
        keys, values = _read(pool, page_table[segment], key_at)
        if key_cos is not None and key_sin is not None:
            keys = _rotate(keys, key_cos[key_at].double(), key_sin[key_at].double())
        seen = key_at[None, :] <= query_at[:, None]
        if window is not None:
            seen &= key_at[None, :] > query_at[:, None] - window
        out[rows], lse[rows] = _attend(query[rows].double(), keys, values, seen, scale, softcap)
    return out, lse


def _read(pool: Tensor, table: Tensor, key_at: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 keys and values [keys, num_kv_heads, head_dim]."""
    pages, offsets = table[key_at // pool.shape[3]].long(), key_at % pool.shape[3]
    tokens = pool[pages, :, :, offsets].double()  # [keys, 2, num_kv_heads, head_dim]
    return tokens[:, 0], tokens[:, 1]


def _rotate(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[1] // 2
    turned = keys.clone()
    for low in range(half):
        high = low + half
        a, b = keys[:, :, low], keys[:, :, high]
        turned[:, :, low] = a * cos[:, None, low] - b * sin[:, None, low]
        turned[:, :, high] = b * cos[:, None, high] + a * sin[:, None, high]
    return turned


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    group_size = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group_size, dim=1), values.repeat_interleave(group_size, dim=1)
    scores = scale * torch.einsum("qhd,khd->qhk", query, keys)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen[:, None, :], float("-inf"))
    return torch.einsum("qhk,khd->qhd", torch.softmax(scores, dim=-1), values), torch.logsumexp(scores, dim=-1)
