"""Paged attention from plain torch operations: gather a segment's pages, then scaled-dot-product attention.

Correct on every device and dtype; the fallback of a CPU without a C++ compiler, and the measure for the others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .attention_call import AttentionCall


def gather_attention(call: AttentionCall) -> None:
    """Fill ``call.out`` (and ``call.lse``), one segment after another."""
    check_ranges(call)
    starts = call.query_starts.tolist()
    for segment, position in enumerate(call.positions.tolist()):
        first, last = starts[segment], starts[segment + 1]
        if first < last:
            _attend_segment(call, segment, slice(first, last), position)


def check_ranges(call: AttentionCall) -> None:
    """Raise ValueError unless the index tensors' values fit the other arguments (reads them: synchronises a GPU)."""
    starts, positions = call.query_starts.tolist(), call.positions.tolist()
    num_tokens, num_pages, page_size = call.query.shape[0], call.pool.shape[0], call.pool.shape[3]
    if starts[0] != 0 or starts[-1] != num_tokens or starts != sorted(starts):
        raise ValueError(f"query_starts is {starts}: expected to rise from 0 to {num_tokens}")
    for segment, position in enumerate(positions):
        length = position + starts[segment + 1] - starts[segment]
        limit = call.page_table.shape[1] * page_size
        if position < 0 or (length > limit and starts[segment + 1] > starts[segment]):
            raise ValueError(
                f"positions[{segment}] is {position}: expected 0 or more, and KV length {length} <= {limit}"
            )
        first_key = 0 if call.window is None else max(0, position + 1 - call.window)
        used = call.page_table[segment, first_key // page_size : -(-length // page_size)]
        if starts[segment + 1] > starts[segment] and bool(((used < 0) | (used >= num_pages)).any()):
            raise ValueError(f"page_table[{segment}] is {used.tolist()}: expected pages in 0..{num_pages - 1}")
        if call.key_cos is not None and length > call.key_cos.shape[0]:
            raise ValueError(f"key_cos has {call.key_cos.shape[0]} positions: expected at least {length}")


def rotate_half_split(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first rotary_dim features of ``keys`` [..., tokens, head_dim] by cos and sin [tokens, rotary_dim]."""
    rotary_dim = cos.shape[-1]
    turned, rest = keys[..., :rotary_dim], keys[..., rotary_dim:]
    low, high = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-high, low], dim=-1) * sin, rest], dim=-1)


def _attend_segment(call: AttentionCall, segment: int, rows: slice, position: int) -> None:
    query = call.query[rows].transpose(0, 1)  # [num_heads, length, head_dim]
    kv_length = position + query.shape[1]
    first_key = 0 if call.window is None else max(0, position + 1 - call.window)
    keys, values = _gather(call, segment, first_key, kv_length)
    mask = _mask(call, position, query.shape[1], first_key, kv_length)
    if call.lse is None and call.softcap is None:
        out = _dense(query, keys, values, mask, call.scale, call.group_size)
    else:
        out, lse = _explicit(call, query, keys, values, mask)
        if call.lse is not None:
            call.lse[rows] = lse.transpose(0, 1)
    call.out[rows] = out.transpose(0, 1).to(call.out.dtype)


def _gather(call: AttentionCall, segment: int, first_key: int, kv_length: int) -> tuple[Tensor, Tensor]:
    """Keys and values [num_kv_heads, kv_length - first_key, head_dim], float32 on a CPU."""
    _, _, num_kv_heads, page_size, head_dim = call.pool.shape
    first_page, last_page = first_key // page_size, -(-kv_length // page_size)
    pages = call.pool.index_select(0, call.page_table[segment, first_page:last_page])
    if pages.device.type == "cpu":
        pages = pages.float()  # 16-bit attention on a CPU is many times slower
    dense = pages.permute(1, 2, 0, 3, 4).reshape(2, num_kv_heads, (last_page - first_page) * page_size, head_dim)
    keys, values = dense[:, :, first_key - first_page * page_size : kv_length - first_page * page_size]
    if call.key_cos is not None and call.key_sin is not None:
        cos, sin = call.key_cos[first_key:kv_length], call.key_sin[first_key:kv_length]
        keys = rotate_half_split(keys.float(), cos, sin).to(keys.dtype)
    return keys, values


def _mask(call: AttentionCall, position: int, length: int, first_key: int, kv_length: int) -> Tensor | None:
    """Boolean [length, kv_length - first_key], True where the query sees the key; None where all see all."""
    if length == 1:
        return None  # the gather starts at the window's first key and ends at the query's own
    device = call.query.device
    query_at = torch.arange(position, position + length, device=device)[:, None]
    key_at = torch.arange(first_key, kv_length, device=device)[None, :]
    mask = key_at <= query_at
    return mask if call.window is None else mask & (key_at > query_at - call.window)


def _dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, group_size: int) -> Tensor:
    out = scaled_dot_product_attention(
        q.to(k.dtype)[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=group_size > 1
    )
    return out[0]


def _explicit(
    call: AttentionCall, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention [num_heads, length, head_dim] and its log-sum-exp [num_heads, length], from float32 products."""
    grouped = query.float().reshape(-1, call.group_size, *query.shape[1:])  # [num_kv_heads, group, length, head_dim]
    scores = call.scale * grouped @ keys.float()[:, None].transpose(-1, -2)
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    out = torch.softmax(scores, dim=-1) @ values.float()[:, None]
    return out.flatten(0, 1), torch.logsumexp(scores, dim=-1).flatten(0, 1)
