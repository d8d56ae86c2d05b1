"""Hand tensors to the C++ kernels."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .attention_call import AttentionCall
from .torch_attention import check_ranges

STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class AttentionArguments(ctypes.Structure):
    """``Call`` of tiles.h."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("query", "pool", "page_table", "query_starts", "positions", "out", "lse")
        ),
        *((name, ctypes.c_void_p) for name in ("key_cos", "key_sin")),
        ("query_strides", ctypes.c_int64 * 2),
        ("out_strides", ctypes.c_int64 * 2),
        ("pool_strides", ctypes.c_int64 * 4),
        *(
            (name, ctypes.c_int64)
            for name in ("cos_stride", "sin_stride", "table_stride", "num_segments", "num_tokens", "num_pages")
        ),
        *((name, ctypes.c_int64) for name in ("max_pages", "num_heads", "num_kv_heads", "page_size", "head_dim")),
        *((name, ctypes.c_int64) for name in ("rotary_dim", "max_positions", "window", "num_threads")),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("storage", ctypes.c_int32),
    )


class _Write(ctypes.Structure):
    """``Write`` of cache_write.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("key", "value", "pool", "slots")),
        ("key_strides", ctypes.c_int64 * 2),
        ("value_strides", ctypes.c_int64 * 2),
        ("pool_strides", ctypes.c_int64 * 4),
        *((name, ctypes.c_int64) for name in ("num_tokens", "num_pages", "num_kv_heads", "page_size", "row_bytes")),
        ("num_threads", ctypes.c_int64),
    )


def native_attention(library: ctypes.CDLL, call: AttentionCall) -> None:
    """Fill ``call.out`` (and ``call.lse``) by the C++ kernel; 16-bit storage is computed in float32."""
    query = call.query.float()
    out = call.out if call.out.dtype == torch.float32 else torch.empty_like(call.out, dtype=torch.float32)
    if library.kvarena_paged_attention(ctypes.byref(attention_arguments(call, query, out))):
        check_ranges(call)
        raise AssertionError("the C++ kernel refused indices that are in range")
    if out is not call.out:
        call.out.copy_(out)


def native_write(library: ctypes.CDLL, key: Tensor, value: Tensor, pool: Tensor, slots: Tensor) -> bool:
    """`write_pages` by the C++ kernel; False, with nothing written, if a slot is out of range."""
    slots = slots.contiguous()
    itemsize = pool.element_size()
    arguments = _Write(
        key=key.data_ptr(),
        value=value.data_ptr(),
        pool=pool.data_ptr(),
        slots=slots.data_ptr(),
        key_strides=tuple(step * itemsize for step in key.stride()[:2]),
        value_strides=tuple(step * itemsize for step in value.stride()[:2]),
        pool_strides=tuple(step * itemsize for step in pool.stride()[:4]),
        num_tokens=slots.numel(),
        num_pages=pool.shape[0],
        num_kv_heads=pool.shape[2],
        page_size=pool.shape[3],
        row_bytes=pool.shape[4] * itemsize,
        num_threads=torch.get_num_threads(),
    )
    return not library.kvarena_write_pages(ctypes.byref(arguments))


def attention_arguments(call: AttentionCall, query: Tensor, out: Tensor) -> AttentionArguments:
    """``call`` with a float32 ``query`` and ``out`` in place of its own."""
    num_pages, _, num_kv_heads, page_size, head_dim = call.pool.shape
    cos, sin = call.key_cos, call.key_sin
    return AttentionArguments(
        query=query.data_ptr(),
        pool=call.pool.data_ptr(),
        page_table=call.page_table.data_ptr(),
        query_starts=call.query_starts.data_ptr(),
        positions=call.positions.data_ptr(),
        out=out.data_ptr(),
        lse=None if call.lse is None else call.lse.data_ptr(),
        key_cos=None if cos is None else cos.data_ptr(),
        key_sin=None if sin is None else sin.data_ptr(),
        query_strides=tuple(query.stride()[:2]),
        out_strides=tuple(out.stride()[:2]),
        pool_strides=tuple(call.pool.stride()[:4]),
        cos_stride=0 if cos is None else cos.stride(0),
        sin_stride=0 if sin is None else sin.stride(0),
        table_stride=call.page_table.stride(0),
        num_segments=call.positions.numel(),
        num_tokens=query.shape[0],
        num_pages=num_pages,
        max_pages=call.page_table.shape[1],
        num_heads=query.shape[1],
        num_kv_heads=num_kv_heads,
        page_size=page_size,
        head_dim=head_dim,
        rotary_dim=0 if cos is None else cos.shape[1],
        max_positions=0 if cos is None else cos.shape[0],
        window=call.window or 0,
        num_threads=torch.get_num_threads(),
        scale=call.scale,
        softcap=call.softcap or 0.0,
        storage=STORAGE[call.pool.dtype],
    )
