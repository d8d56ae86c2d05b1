"""Attention statistics by the C++ kernel."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from .attention_call import AttentionCall
from .native_attention import AttentionArguments, attention_arguments
from .torch_attention import check_ranges


class _Statistics(ctypes.Structure):
    """``Statistics`` of attention_statistics.cpp."""

    _fields_ = (
        ("call", AttentionArguments),
        ("sums", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("num_keys", ctypes.c_int64),
        ("height", ctypes.c_int64),
    )


def native_statistics(
    library: ctypes.CDLL, call: AttentionCall, column_sums: bool, rows: int
) -> tuple[Tensor | None, Tensor | None]:
    """Column sums and rows as ``AttentionStatistics`` has them."""
    lengths = np.diff(call.query_starts.numpy())
    ends = np.where(lengths > 0, call.positions.numpy() + lengths, 0)
    num_segments, num_heads, num_keys = len(lengths), call.query.shape[1], max(0, int(ends.max(initial=0)))
    height = min(rows, max(0, int(lengths.max(initial=0))))
    new = call.query.new_zeros
    sums = new((num_segments, num_heads, num_keys), dtype=torch.float32) if column_sums else None
    last = new((num_segments, num_heads, height, num_keys), dtype=torch.float32) if rows else None
    query = call.query.float()
    arguments = _Statistics(
        call=attention_arguments(call, query, query),
        sums=None if sums is None else sums.data_ptr(),
        rows=None if last is None else last.data_ptr(),
        num_keys=num_keys,
        height=height if last is not None else 0,
    )
    if library.kvarena_attention_statistics(ctypes.byref(arguments)):
        check_ranges(call)
        raise AssertionError("the C++ kernel refused indices that are in range")
    return sums, last
