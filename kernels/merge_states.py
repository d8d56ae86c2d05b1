"""Attention over two sets of keys from the attention over each."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_call import DTYPES, check_tensor


def merge_states(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys, by the log-sum-exp of their scores.

    A part without keys has a log-sum-exp of -inf; what stands in its output is then ignored, NaN included. Without keys
    in either part the result is 0, -inf.

    Parameters
    ----------
    out, other_out: [num_tokens, num_heads, head_dim], attention over each set; float32, bfloat16 or float16.
    lse, other_lse: float32 [num_tokens, num_heads], natural logarithm of the sum of exp(score) over each set.

    Returns
    -------
    The merged output, like ``out`` (computed in float32), and its log-sum-exp, like ``lse``.

    Raises
    ------
    ValueError: shapes, dtypes or devices do not fit.
    """
    check_tensor("out", out, (None, None, None), DTYPES, None)
    check_tensor("other_out", other_out, tuple(out.shape), (out.dtype,), out.device)
    check_tensor("lse", lse, tuple(out.shape[:2]), (torch.float32,), out.device)
    check_tensor("other_lse", other_lse, tuple(out.shape[:2]), (torch.float32,), out.device)
    total = torch.logaddexp(lse, other_lse)
    finite = total.masked_fill(total == float("-inf"), 0.0)
    merged = _share(out, lse, finite) + _share(other_out, other_lse, finite)
    return merged.to(out.dtype), total


def _share(out: Tensor, lse: Tensor, total: Tensor) -> Tensor:
    """What a part adds: its output, weighed by its share of the probabilities; 0 where it has no keys."""
    weight = (lse - total).exp()[..., None]
    return torch.where(weight > 0, out.float() * weight, 0.0)
