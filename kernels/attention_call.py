"""The checked arguments of one paged-attention call, as every implementation receives them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One ragged batch of query segments over a paged KV pool; ``out`` and ``lse`` are filled by the implementation.

    Attributes
    ----------
    query: [num_tokens, num_heads, head_dim], the segments' queries one after another.
    pool: [num_pages, 2, num_kv_heads, page_size, head_dim], keys at index 0 of dim 1 and values at 1.
    page_table: int32 [num_segments, max_pages].
    query_starts: int32 [num_segments + 1].
    positions: int32 [num_segments], absolute position of each segment's first query.
    out: [num_tokens, num_heads, head_dim].
    lse: float32 [num_tokens, num_heads], natural logarithm of the sum of exp(score), or None when not wanted.
    """

    query: Tensor
    pool: Tensor
    page_table: Tensor
    query_starts: Tensor
    positions: Tensor
    out: Tensor
    lse: Tensor | None
    scale: float
    window: int | None
    softcap: float | None
    key_cos: Tensor | None
    key_sin: Tensor | None

    @property
    def group_size(self) -> int:
        """Query heads per KV head."""
        return self.query.shape[1] // self.pool.shape[2]

    def check(self) -> None:
        """Raise ValueError unless shapes, dtypes, devices and strides fit together."""
        self._check_query_and_pool()
        device, num_segments = self.query.device, self.positions.numel()
        check_tensor("positions", self.positions, (None,), (torch.int32,), device)
        check_tensor("page_table", self.page_table, (num_segments, None), (torch.int32,), device)
        check_tensor("query_starts", self.query_starts, (num_segments + 1,), (torch.int32,), device)
        check_tensor("out", self.out, tuple(self.query.shape), (self.query.dtype,), device)
        if self.lse is not None:
            check_tensor("lse", self.lse, tuple(self.query.shape[:2]), (torch.float32,), device)
        self._check_numbers()
        self._check_rotation()

    def _check_query_and_pool(self) -> None:
        check_tensor("query", self.query, (None, None, None), DTYPES, None)
        _, num_heads, head_dim = self.query.shape
        check_tensor("pool", self.pool, (None, 2, None, None, head_dim), (self.query.dtype,), self.query.device)
        _, _, num_kv_heads, page_size, _ = self.pool.shape
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(f"query has {num_heads} heads: expected a multiple of the pool's {num_kv_heads} KV heads")
        if not 1 <= head_dim <= 1024:
            raise ValueError(f"head_dim is {head_dim}: expected 1..1024")
        if page_size < 1:
            raise ValueError(f"page_size is {page_size}: expected at least 1")

    def _check_numbers(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}: expected at least 1 or None")
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap is {self.softcap}: expected above 0 or None")
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}: expected above 0")

    def _check_rotation(self) -> None:
        if (self.key_cos is None) != (self.key_sin is None):
            raise ValueError("key_cos and key_sin: expected both or neither")
        if self.key_cos is None or self.key_sin is None:
            return
        check_tensor("key_cos", self.key_cos, (None, None), (torch.float32,), self.query.device)
        check_tensor("key_sin", self.key_sin, tuple(self.key_cos.shape), (torch.float32,), self.query.device)
        rotary_dim, head_dim = self.key_cos.shape[1], self.query.shape[2]
        if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
            raise ValueError(f"key_cos has rotary_dim {rotary_dim}: expected an even number in 2..{head_dim}")


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: tuple[int | None, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None,
) -> None:
    """Raise ValueError unless ``tensor`` has the shape (None: any size), dtype, device and a dense last dimension."""
    if not _fits(tensor.shape, shape):
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected ({wanted})")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} has dtype {tensor.dtype}: expected {' or '.join(map(str, dtypes))}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}: expected {device}")
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name} has stride {tensor.stride(-1)} in its last dimension: expected 1")


def _fits(actual: torch.Size, wanted: tuple[int | None, ...]) -> bool:
    if actual == wanted:
        return True
    if len(actual) != len(wanted):
        return False
    # a plain loop: this runs several times per layer and step
    for size, expected in zip(actual, wanted, strict=True):  # noqa: SIM110
        if expected is not None and size != expected:
            return False
    return True
