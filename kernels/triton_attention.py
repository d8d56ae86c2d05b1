"""Paged attention of a ragged batch as one Triton kernel. Imported only where it runs."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from .attention_call import AttentionCall


@dataclass(frozen=True, slots=True)
class Blocks:
    """Sizes of one program's work: ``rows`` (query tokens x heads of a group), ``keys`` of an iteration."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def choose_blocks(call: AttentionCall) -> Blocks:
    """A rule of thumb on sizes that are known without asking the device; not tuned, but hardly a register spills."""
    padded_dim, group_size = triton.next_power_of_2(call.query.shape[2]), call.group_size
    wide = call.query.dtype == torch.float32
    mean_rows = group_size * call.query.shape[0] / max(1, call.positions.numel())
    rows = max(16 if mean_rows <= 32 or padded_dim > 128 or wide else 64, triton.next_power_of_2(group_size))
    return Blocks(
        rows=rows,
        keys=(64 if padded_dim <= 128 else 32) // (2 if wide else 1),
        num_warps=8 if rows * padded_dim >= 64 * 128 or (wide and padded_dim > 128) else 4,
        num_stages=1 if wide or call.key_cos is not None else 2,
    )


def triton_attention(call: AttentionCall) -> None:
    """Fill ``call.out`` (and ``call.lse``). Index values are not checked: that would wait for the device."""
    blocks = choose_blocks(call)
    block_queries = blocks.rows // call.group_size
    num_segments = call.positions.numel()
    # an upper bound of the number of query tiles, so that the host need not know the lengths; surplus programs return
    grid = (call.query.shape[0] // block_queries + num_segments, call.pool.shape[2])
    attend_tile[grid](
        *arguments(call), **constants(call, blocks), num_warps=blocks.num_warps, num_stages=blocks.num_stages
    )


def arguments(call: AttentionCall) -> tuple[Any, ...]:
    """The kernel's run-time arguments, in order."""
    cos, sin = call.key_cos, call.key_sin
    tensors = (call.query, call.pool, call.page_table, call.query_starts, call.positions, call.out, call.lse, cos, sin)
    strides = (
        *call.query.stride()[:2],
        *call.out.stride()[:2],
        *call.pool.stride()[:4],
        0 if cos is None else cos.stride(0),
        0 if sin is None else sin.stride(0),
    )
    sizes = (call.positions.numel(), call.page_table.stride(0), call.query.shape[1], call.window or 0)
    return (*tensors, *strides, *sizes, call.scale, call.softcap or 0.0)


def constants(call: AttentionCall, blocks: Blocks) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    head_dim = call.query.shape[2]
    return {
        "HEAD_DIM": head_dim,
        "PADDED_DIM": max(16, triton.next_power_of_2(head_dim)),
        "GROUP": call.group_size,
        "PAGE_SIZE": call.pool.shape[3],
        "ROTARY_DIM": 0 if call.key_cos is None else call.key_cos.shape[1],
        "HAS_WINDOW": call.window is not None,
        "HAS_SOFTCAP": call.softcap is not None,
        "HAS_LSE": call.lse is not None,
        "BLOCK_ROWS": blocks.rows,
        "BLOCK_KEYS": blocks.keys,
    }


@triton.jit
def find_segment(query_starts, num_segments, tile, BLOCK_QUERIES: tl.constexpr):
    """The last segment whose first tile, counted as starts // BLOCK_QUERIES + index, is at or before ``tile``."""
    low = 0
    high = num_segments
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_starts + middle) // BLOCK_QUERIES + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def rotate_keys(keys, key_at, offset, key_seen, at, cos, sin, cos_stride, sin_stride, dim, ROTARY_DIM: tl.constexpr):
    """Half-split rotation of ``keys`` [BLOCK_KEYS, PADDED_DIM], read from ``key_at + offset``, at positions ``at``."""
    half: tl.constexpr = ROTARY_DIM // 2
    partner = tl.where(dim < half, dim + half, dim - half)
    turned = key_seen[:, None] & (dim < ROTARY_DIM)[None, :]
    other = tl.load(key_at + offset[:, None] + partner[None, :], mask=turned, other=0.0).to(tl.float32)
    c = tl.load(cos + at.to(tl.int64)[:, None] * cos_stride + dim[None, :], mask=turned, other=1.0)
    s = tl.load(sin + at.to(tl.int64)[:, None] * sin_stride + dim[None, :], mask=turned, other=0.0)
    return (keys.to(tl.float32) * c + tl.where(dim < half, -1.0, 1.0)[None, :] * other * s).to(keys.dtype)


@triton.jit
def tanh(x):
    """Exact to float32 near zero too (Cephes' tanhf), where 1 - 2 / (exp(2x) + 1) would lose digits."""
    z = x * x
    p = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
    small = x + x * z * (p - 3.33332819422e-1)
    decay = tl.exp2(-2.885390081777927 * tl.abs(x))
    large = (1.0 - decay) / (1.0 + decay)
    return tl.where(tl.abs(x) < 0.625, small, tl.where(x < 0, -large, large))


@triton.jit
def attend_tile(
    query,
    pool,
    page_table,
    query_starts,
    positions,
    out,
    lse,
    cos,
    sin,
    query_token_stride,
    query_head_stride,
    out_token_stride,
    out_head_stride,
    page_stride,
    value_stride,
    head_stride,
    slot_stride,
    cos_stride,
    sin_stride,
    num_segments,
    table_stride,
    num_heads,
    window,
    scale,
    softcap,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_LSE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """One program: the query heads of one KV head for BLOCK_ROWS // GROUP consecutive queries of one segment."""
    BLOCK_QUERIES: tl.constexpr = BLOCK_ROWS // GROUP
    LOG2_E: tl.constexpr = 1.4426950408889634
    kv_head = tl.program_id(1)
    segment = find_segment(query_starts, num_segments, tl.program_id(0), BLOCK_QUERIES)
    start = tl.load(query_starts + segment)
    length = tl.load(query_starts + segment + 1) - start
    first = (tl.program_id(0) - start // BLOCK_QUERIES - segment) * BLOCK_QUERIES
    if first >= length:
        return
    row = tl.arange(0, BLOCK_ROWS)
    dim = tl.arange(0, PADDED_DIM)
    row_query = first + row // GROUP
    head = kv_head * GROUP + row % GROUP
    row_used = (row < BLOCK_QUERIES * GROUP) & (row_query < length)
    used = row_used[:, None] & (dim < HEAD_DIM)[None, :]
    token = (start + row_query).to(tl.int64)
    q_at = token * query_token_stride + head * query_head_stride
    q = tl.load(query + q_at[:, None] + dim[None, :], mask=used, other=0.0)

    position = tl.load(positions + segment)
    row_at = position + row_query  # the last key that a row sees
    end = position + tl.minimum(first + BLOCK_QUERIES, length)
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(0, position + first + 1 - window) // BLOCK_KEYS * BLOCK_KEYS
    table = page_table + segment.to(tl.int64) * table_stride
    key_at = pool + kv_head.to(tl.int64) * head_stride
    top = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    sums = tl.zeros([BLOCK_ROWS, PADDED_DIM], tl.float32)
    for tile in range(begin, end, BLOCK_KEYS):
        at = tile + tl.arange(0, BLOCK_KEYS)
        key_seen = at < end
        if HAS_WINDOW:
            key_seen = key_seen & (at > position + first - window)  # pages before the window may be gone
        page = tl.load(table + at // PAGE_SIZE, mask=key_seen, other=0).to(tl.int64)
        offset = page * page_stride + (at % PAGE_SIZE) * slot_stride
        key_used = key_seen[:, None] & (dim < HEAD_DIM)[None, :]
        k = tl.load(key_at + offset[:, None] + dim[None, :], mask=key_used, other=0.0)
        if ROTARY_DIM > 0:
            k = rotate_keys(k, key_at, offset, key_seen, at, cos, sin, cos_stride, sin_stride, dim, ROTARY_DIM)
        scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
        if HAS_SOFTCAP:
            scores = softcap * tanh(scores * (1.0 / softcap))
        seen = at[None, :] <= row_at[:, None]
        if HAS_WINDOW:
            seen = seen & (at[None, :] > row_at[:, None] - window)
        scores = tl.where(seen, scores * LOG2_E, float("-inf"))
        highest = tl.maximum(top, tl.max(scores, 1))
        reference = tl.where(highest == float("-inf"), 0.0, highest)  # a row that has seen no key yet
        weights = tl.exp2(scores - reference[:, None])
        shrink = tl.exp2(top - reference)
        v = tl.load(key_at + value_stride + offset[:, None] + dim[None, :], mask=key_used, other=0.0)
        total = total * shrink + tl.sum(weights, 1)
        sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="tf32x3")
        top = highest
    result = sums / total[:, None]
    out_at = token * out_token_stride + head * out_head_stride
    tl.store(out + out_at[:, None] + dim[None, :], result.to(out.dtype.element_ty), mask=used)
    if HAS_LSE:
        tl.store(lse + token * num_heads + head, (top + tl.log2(total)) / LOG2_E, mask=row_used)
