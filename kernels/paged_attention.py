"""Attention of a ragged batch of query segments over a paged KV pool, on any device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, overload

import torch
from torch import Tensor

from .attention_call import AttentionCall
from .native import library
from .native_attention import native_attention
from .torch_attention import gather_attention


@overload
def paged_attention(
    query: Tensor,
    pool: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    positions: Tensor,
    *,
    scale: float,
    window: int | None = ...,
    softcap: float | None = ...,
    key_cos: Tensor | None = ...,
    key_sin: Tensor | None = ...,
    return_lse: Literal[False] = ...,
    out: Tensor | None = ...,
) -> Tensor: ...


@overload
def paged_attention(
    query: Tensor,
    pool: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    positions: Tensor,
    *,
    scale: float,
    window: int | None = ...,
    softcap: float | None = ...,
    key_cos: Tensor | None = ...,
    key_sin: Tensor | None = ...,
    return_lse: Literal[True],
    out: Tensor | None = ...,
) -> tuple[Tensor, Tensor]: ...


def paged_attention(
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
    return_lse: bool = False,
    out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal attention by absolute position: a query at position p sees the keys 0..p of its segment's page table.

    Decodes (one query) and prefills (many) mix freely; segments may share pages; a segment of no queries is a no-op.

    Parameters
    ----------
    query: [num_tokens, num_heads, head_dim], the segments' queries one after another; float32, bfloat16 or float16.
    pool: [num_pages, 2, num_kv_heads, page_size, head_dim], keys and values, same dtype; any strides but the last.
    page_table: int32 [num_segments, max_pages], the page of each ``page_size`` positions.
    query_starts: int32 [num_segments + 1], rising from 0 to num_tokens.
    positions: int32 [num_segments], absolute position of each segment's first query.
    scale: factor of the scores.
    window: a query sees its last ``window`` keys only, its own included.
    softcap: scores become ``softcap * tanh(score / softcap)``.
    key_cos, key_sin: float32 [max_positions, rotary_dim]; the pool holds un-rotated keys, which are rotated
        (half-split pairs, first rotary_dim features) at their position when read. Queries come rotated.
    return_lse: also return the log-sum-exp of the scores.
    out: where to write the result, like ``query``.

    Returns
    -------
    [num_tokens, num_heads, head_dim] in the query's dtype; with ``return_lse`` also float32 [num_tokens, num_heads].

    Raises
    ------
    ValueError: an argument's shape, dtype, device or stride does not fit; on a CPU also an index out of range.
    """
    lse = query.new_empty(query.shape[:2], dtype=torch.float32) if return_lse else None
    call = AttentionCall(
        query=query,
        pool=pool,
        page_table=page_table,
        query_starts=query_starts,
        positions=positions,
        out=torch.empty_like(query, memory_format=torch.contiguous_format) if out is None else out,
        lse=lse,
        scale=scale,
        window=window,
        softcap=softcap,
        key_cos=key_cos,
        key_sin=key_sin,
    )
    call.check()
    if query.shape[0] > 0:
        _implementation(query.device)(call)
    return call.out if lse is None else (call.out, lse)


def _implementation(device: torch.device) -> Callable[[AttentionCall], None]:
    """What computes on ``device``: the one place of dispatch."""
    if device.type == "cuda":
        from .triton_attention import triton_attention  # a CPU run imports no triton

        return triton_attention
    native = library() if device.type == "cpu" else None
    return gather_attention if native is None else partial(native_attention, native)
