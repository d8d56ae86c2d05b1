"""Write new keys and values into their slots of a paged KV pool."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_call import DTYPES, check_tensor
from .native import library
from .native_attention import native_write


def write_pages(key: Tensor, value: Tensor, pool: Tensor, slots: Tensor) -> None:
    """Store token i's key and value at slot ``slots[i]`` = page * page_size + offset; -1 writes nothing.

    Parameters
    ----------
    key, value: [num_tokens, num_kv_heads, head_dim], of the pool's dtype and device.
    pool: [num_pages, 2, num_kv_heads, page_size, head_dim], modified in place; any strides but the last.
    slots: int64 [num_tokens]; no slot twice (else which token stays is not defined).

    Raises
    ------
    ValueError: an argument's shape, dtype, device or stride does not fit; on a CPU also a slot out of range.
    """
    check_tensor("pool", pool, (None, 2, None, None, None), DTYPES, None)
    shape = (slots.numel(), pool.shape[2], pool.shape[4])
    check_tensor("key", key, shape, (pool.dtype,), pool.device)
    check_tensor("value", value, shape, (pool.dtype,), pool.device)
    check_tensor("slots", slots, (None,), (torch.int64,), pool.device)
    if slots.numel() > 0:
        _write(key, value, pool, slots)


def _write(key: Tensor, value: Tensor, pool: Tensor, slots: Tensor) -> None:
    """Write with what the pool's device has: the one place of dispatch."""
    if pool.device.type == "cuda":
        from .triton_write import triton_write  # a CPU run imports no triton

        return triton_write(key, value, pool, slots)
    native = library() if pool.device.type == "cpu" else None
    if native is None or not native_write(native, key, value, pool, slots):
        index_write(key, value, pool, slots)
    return None


def index_write(key: Tensor, value: Tensor, pool: Tensor, slots: Tensor) -> None:
    """`write_pages` from plain torch operations."""
    num_slots = pool.shape[0] * pool.shape[3]
    low, high = int(slots.min()), int(slots.max())
    if low < -1 or high >= num_slots:
        raise ValueError(f"slots span {low}..{high}: expected -1..{num_slots - 1}")
    if low < 0:
        kept = slots >= 0
        key, value, slots = key[kept], value[kept], slots[kept]
    pages, offsets = slots // pool.shape[3], slots % pool.shape[3]
    pool[pages, 0, :, offsets] = key
    pool[pages, 1, :, offsets] = value
