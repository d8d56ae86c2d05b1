"""Attention statistics from plain torch operations: gather keys, scores in blocks of bounded size."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_call import AttentionCall
from .torch_attention import check_ranges, rotate_half_split

BLOCK_ELEMENTS = 1 << 22  # numbers in the largest temporary tensor (keys or scores), where one segment's query fits


def gather_statistics(call: AttentionCall, column_sums: bool, rows: int) -> tuple[Tensor | None, Tensor | None]:
    """Column sums and rows as ``AttentionStatistics`` has them, and ``call.lse`` where there is one (reads the index
    tensors: synchronises a GPU)."""
    lengths, ends = _check(call)
    num_segments, num_heads, num_keys = len(lengths), call.query.shape[1], max(ends, default=0)
    height = min(rows, max(lengths, default=0))
    new = call.query.new_zeros
    sums = new((num_segments, num_heads, num_keys), dtype=torch.float32) if column_sums else None
    last = new((num_segments, num_heads, height, num_keys), dtype=torch.float32) if rows else None
    if (sums is not None or height or call.lse is not None) and num_segments:
        if max(lengths) == min(lengths) == 1:
            _fill_decodes(call, sums, last, num_keys)
        else:
            _fill_segments(call, sums, last, lengths, ends)
    return sums, last


def dense_probabilities(
    query: Tensor, keys: Tensor, seen: Tensor | None, scale: float, softcap: float | None, lse: Tensor | None = None
) -> Tensor:
    """Softmax over the keys, in float32.

    Parameters
    ----------
    query: [..., num_heads, length, head_dim].
    keys: [..., num_kv_heads, num_keys, head_dim]; neighbouring query heads share one.
    seen: bool, broadcast against [..., num_kv_heads, group, length, num_keys]; each query sees a key. None: all.
    lse: float32 [..., num_heads, length], filled with the log-sum-exp of the scores, or None.

    Returns
    -------
    [..., num_heads, length, num_keys].
    """
    *_, num_heads, length, head_dim = query.shape
    num_kv_heads = keys.shape[-3]
    packed = query.float().reshape(*query.shape[:-3], num_kv_heads, -1, head_dim)  # group x length
    scores = (packed * scale) @ keys.float().transpose(-1, -2)
    scores = scores.view(*scores.shape[:-2], num_heads // num_kv_heads, length, -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if seen is not None:
        scores = scores.masked_fill_(~seen, float("-inf"))
    if lse is not None:
        lse.copy_(torch.logsumexp(scores, dim=-1).flatten(-3, -2))
    return torch.softmax(scores, dim=-1).flatten(-4, -3)


def _check(call: AttentionCall) -> tuple[list[int], list[int]]:
    """Queries and keys of each segment."""
    starts, positions = call.query_starts, call.positions
    lengths = starts.diff()
    ends = torch.where(lengths > 0, positions + lengths, 0)
    page_size, num_pages = call.pool.shape[3], call.pool.shape[0]
    page_end = (torch.arange(call.page_table.shape[1], device=starts.device) + 1) * page_size
    used = page_end < ends[:, None] + page_size
    if call.window is not None:
        used &= page_end > positions[:, None] + 1 - call.window
    bad = ((call.page_table < 0) | (call.page_table >= num_pages)) & used
    wrong = (
        (lengths < 0).any() | (positions < 0).any() | bad.any() | (ends > call.page_table.shape[1] * page_size).any()
    )
    found = ends.tolist()
    outside = starts[0] != 0 or starts[-1] != call.query.shape[0]
    if outside or wrong or (call.key_cos is not None and max(found, default=0) > call.key_cos.shape[0]):
        check_ranges(call)
    return lengths.tolist(), found


def _fill_decodes(call: AttentionCall, sums: Tensor | None, rows: Tensor | None, num_keys: int) -> None:
    """Segments of one query each: many at a time."""
    keys_each = call.pool.shape[2] * num_keys * max(call.pool.shape[4], call.group_size)
    step = max(1, BLOCK_ELEMENTS // max(1, keys_each))
    for first in range(0, call.positions.numel(), step):
        block = slice(first, first + step)
        at = call.positions[block, None, None, None, None]
        keys = _keys(call, call.page_table[block], 0, num_keys)
        seen = _seen(call, at, 0, num_keys)
        lse = None if call.lse is None else call.lse[block].unsqueeze(2)
        found = dense_probabilities(call.query[block].unsqueeze(2), keys, seen, call.scale, call.softcap, lse)
        if sums is not None:
            sums[block] = found[:, :, 0]
        if rows is not None:
            rows[block] = found


def _fill_segments(
    call: AttentionCall, sums: Tensor | None, rows: Tensor | None, lengths: list[int], ends: list[int]
) -> None:
    """Segment by segment."""
    starts = call.query_starts.tolist()
    for i, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        if not length:
            continue
        query = call.query[starts[i] : starts[i + 1]].transpose(0, 1)  # [num_heads, length, head_dim]
        first = 0 if call.window is None else max(0, end - length + 1 - call.window)
        keys = _keys(call, call.page_table[i : i + 1], first, end)[0]
        if sums is not None or call.lse is not None:
            lse = None if call.lse is None else call.lse[starts[i] : starts[i + 1]].transpose(0, 1)
            _add_columns(call, query, keys, first, None if sums is None else sums[i, :, first:end], lse)
        if rows is not None and rows.shape[2]:
            height = min(rows.shape[2], length)
            rows[i, :, rows.shape[2] - height :, first:end] = _block(call, query[:, length - height :], keys, first)


def _add_columns(
    call: AttentionCall, query: Tensor, keys: Tensor, first: int, sums: Tensor | None, lse: Tensor | None
) -> None:
    """Add up the probabilities of ``query`` [num_heads, length, head_dim] over ``keys`` [num_kv_heads, num_keys,
    head_dim], the last of which is the last query's own, in ``sums`` [num_heads, num_keys]; ``lse``: [num_heads,
    length]."""
    num_heads, length, _ = query.shape
    num_keys = keys.shape[1]
    step = max(1, BLOCK_ELEMENTS // (num_heads * num_keys))
    for last in range(length, 0, -step):
        stop = num_keys - (length - last)  # keys behind the block's last query are seen by none of it
        block = slice(max(0, last - step), last)
        found = _block(call, query[:, block], keys[:, :stop], first, None if lse is None else lse[:, block])
        if sums is not None:
            sums[:, :stop] += found.sum(dim=1)


def _block(call: AttentionCall, query: Tensor, keys: Tensor, first: int, lse: Tensor | None = None) -> Tensor:
    """Probabilities [num_heads, length, num_keys] of queries the last of which is at the last of ``keys``."""
    end = first + keys.shape[1]
    at = torch.arange(end - query.shape[1], end, device=query.device)[:, None]
    return dense_probabilities(query, keys, _seen(call, at, first, end), call.scale, call.softcap, lse)


def _seen(call: AttentionCall, query_at: Tensor, first: int, stop: int) -> Tensor:
    """Whether the queries at ``query_at`` [..., 1] see the keys ``first`` .. ``stop``."""
    key_at = torch.arange(first, stop, device=query_at.device)
    seen = key_at <= query_at
    return seen if call.window is None else seen & (key_at > query_at - call.window)


def _keys(call: AttentionCall, table: Tensor, first: int, stop: int) -> Tensor:
    """Float32 [segments, num_kv_heads, stop - first, head_dim], rotated; a segment's last pages may be any."""
    _, _, num_kv_heads, page_size, head_dim = call.pool.shape
    first_page, last_page = first // page_size, -(-stop // page_size)
    # Unused entries of a shorter segment's table need not be pages.
    pages = table[:, first_page:last_page].clamp(0, call.pool.shape[0] - 1)
    planes, page_step, head_step = _planes(call.pool)
    heads = torch.arange(num_kv_heads, device=pages.device)[:, None] * head_step
    index = (pages.long() * page_step)[:, None] + heads  # [segments, num_kv_heads, pages]
    dense = planes.index_select(0, index.flatten()).view(len(pages), num_kv_heads, -1, head_dim).float()
    keys = dense[:, :, first - first_page * page_size : stop - first_page * page_size]
    if call.key_cos is None or call.key_sin is None:
        return keys
    return rotate_half_split(keys, call.key_cos[first:stop], call.key_sin[first:stop])


def _planes(pool: Tensor) -> tuple[Tensor, int, int]:
    """The keys of ``pool`` as rows [rows, page_size * head_dim], and how many rows lie from a page and from a head to
    the next: a view where the strides allow it."""
    keys = pool[:, 0]
    num_pages, num_kv_heads, page_size, head_dim = keys.shape
    size = page_size * head_dim
    page_stride, head_stride, token_stride, _ = keys.stride()
    if token_stride != head_dim or page_stride % size or head_stride % size or not num_pages:
        return keys.reshape(-1, size), num_kv_heads, 1
    page_step, head_step = page_stride // size, head_stride // size
    rows = (num_pages - 1) * page_step + (num_kv_heads - 1) * head_step + 1
    return keys.as_strided((rows, size), (size, 1)), page_step, head_step
