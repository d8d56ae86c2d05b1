"""Copy pages between two pools in a CPU's memory, all layers of a page or some."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .attention_call import check_tensor
from .native import library

Slots = NDArray[np.int32]


def copy_pages(
    source: Tensor,
    target: Tensor,
    source_slots: Slots,
    target_slots: Slots,
    first_layer: int = 0,
    num_layers: int | None = None,
) -> None:
    """Copy the layers ``first_layer`` .. ``first_layer + num_layers`` of page ``source_slots[i]`` of ``source`` to page
    ``target_slots[i]`` of ``target``, for every i.

    Runs on the calling thread, without Python's lock where the kernels are compiled.

    Parameters
    ----------
    source, target: [num_pages, num_layers, 2, num_kv_heads, page_size, head_dim], contiguous, on a CPU; alike but
        in the number of pages, and not overlapping. ``target`` is modified in place.
    source_slots, target_slots: int32 [pages]; no target slot twice. No page is a no-op.
    num_layers: None: all from ``first_layer`` on.

    Raises
    ------
    ValueError: pools or slots do not fit; nothing is copied then.
    """
    _check_pools(source, target)
    count = source.shape[1] - first_layer if num_layers is None else num_layers
    if not (first_layer >= 0 and 1 <= count <= source.shape[1] - first_layer):
        raise ValueError(f"layers {first_layer}..{first_layer + count - 1}: expected some of 0..{source.shape[1] - 1}")
    _check_slots(source_slots, target_slots)
    if not len(source_slots):
        return
    native = library()
    if native is None or not native_copy(native, source, target, source_slots, target_slots, first_layer, count):
        index_copy(source, target, source_slots, target_slots, first_layer, count)


def index_copy(
    source: Tensor, target: Tensor, source_slots: Slots, target_slots: Slots, first_layer: int, num_layers: int
) -> None:
    """`copy_pages` from plain torch operations, a page at a time."""
    for name, slots, pool in (("source_slots", source_slots, source), ("target_slots", target_slots, target)):
        low, high = int(slots.min()), int(slots.max())
        if low < 0 or high >= pool.shape[0]:
            raise ValueError(f"{name} span {low}..{high}: expected 0..{pool.shape[0] - 1}")
    layers = slice(first_layer, first_layer + num_layers)
    for start, end in zip(source_slots.tolist(), target_slots.tolist(), strict=True):
        target[end, layers].copy_(source[start, layers])


class _Copy(ctypes.Structure):
    """``Copy`` of page_copy.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "target", "source_slots", "target_slots")),
        *((name, ctypes.c_int64) for name in ("num_slots", "source_pages", "target_pages")),
        *((name, ctypes.c_int64) for name in ("page_bytes", "first_byte", "piece_bytes")),
    )


def native_copy(
    library: ctypes.CDLL,
    source: Tensor,
    target: Tensor,
    source_slots: Slots,
    target_slots: Slots,
    first_layer: int,
    num_layers: int,
) -> bool:
    """`copy_pages` by the C++ kernel; False, with nothing copied, if a slot is out of range."""
    froms, tos = np.ascontiguousarray(source_slots), np.ascontiguousarray(target_slots)
    layer_bytes = source.stride(1) * source.element_size()
    arguments = _Copy(
        source=source.data_ptr(),
        target=target.data_ptr(),
        source_slots=froms.ctypes.data,
        target_slots=tos.ctypes.data,
        num_slots=len(froms),
        source_pages=source.shape[0],
        target_pages=target.shape[0],
        page_bytes=layer_bytes * source.shape[1],
        first_byte=layer_bytes * first_layer,
        piece_bytes=layer_bytes * num_layers,
    )
    return not library.kvarena_copy_pages(ctypes.byref(arguments))


def _check_pools(source: Tensor, target: Tensor) -> None:
    check_tensor("source", source, (None, None, 2, None, None, None), (source.dtype,), None)
    check_tensor("target", target, (None, *source.shape[1:]), (source.dtype,), source.device)
    for name, pool in (("source", source), ("target", target)):
        if pool.device.type != "cpu" or not pool.is_contiguous():
            raise ValueError(f"{name} is on {pool.device} with strides {pool.stride()}: expected contiguous on cpu")


def _check_slots(source_slots: Any, target_slots: Any) -> None:
    for name, slots in (("source_slots", source_slots), ("target_slots", target_slots)):
        if not isinstance(slots, np.ndarray) or slots.dtype != np.int32 or slots.ndim != 1:
            raise ValueError(f"{name} is {_kind(slots)}: expected an int32 array of one dimension")
    if len(source_slots) != len(target_slots):
        raise ValueError(f"{len(source_slots)} source_slots for {len(target_slots)} target_slots: expected as many")


def _kind(slots: Any) -> str:
    return f"{slots.dtype} {slots.shape}" if isinstance(slots, np.ndarray) else type(slots).__name__
