"""Write new keys and values into a paged pool as one Triton kernel. Imported only where it runs."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def triton_write(key: Tensor, value: Tensor, pool: Tensor, slots: Tensor) -> None:
    """`write_pages` on a GPU. Slot values are not checked: that would wait for the device."""
    head_dim = pool.shape[4]
    write_row[(slots.numel(), pool.shape[2])](
        key,
        value,
        pool,
        slots,
        *key.stride()[:2],
        *value.stride()[:2],
        *pool.stride()[:4],
        slots.stride(0),
        HEAD_DIM=head_dim,
        PADDED_DIM=triton.next_power_of_2(head_dim),
        PAGE_SIZE=pool.shape[3],
        num_warps=1,
    )


@triton.jit
def write_row(
    key,
    value,
    pool,
    slots,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    page_stride,
    value_stride,
    head_stride,
    slot_stride,
    slots_stride,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
):
    """One program: one token's key and value of one head."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + token * slots_stride)
    if slot < 0:
        return
    dim = tl.arange(0, PADDED_DIM)
    used = dim < HEAD_DIM
    to = pool + slot // PAGE_SIZE * page_stride + slot % PAGE_SIZE * slot_stride + head * head_stride + dim
    k = tl.load(key + token * key_token_stride + head * key_head_stride + dim, mask=used)
    v = tl.load(value + token * value_token_stride + head * value_head_stride + dim, mask=used)
    tl.store(to, k, mask=used)
    tl.store(to + value_stride, v, mask=used)
