"""What attention gave to each key, for policies that go by it: column sums, rows, what the rows were normalised by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .attention_call import AttentionCall
from .native import library
from .native_statistics import native_statistics
from .torch_statistics import gather_statistics


@dataclass(frozen=True, slots=True)
class AttentionStatistics:
    """Probabilities over the keys 0 .. n of each segment, n = the most keys that one has; 0 behind a segment's last.

    Attributes
    ----------
    column_sums: float32 [num_segments, num_heads, n], added up over the segment's queries, or None.
    rows: float32 [num_segments, num_heads, w, n], of the segment's last w queries, the newest last; 0 in the first
        rows of a segment with fewer. None where they are not wanted.
    log_sum_exp: float32 [num_tokens, num_heads], of each query, as :func:`paged_attention` has it, or None.
    """

    column_sums: Tensor | None
    rows: Tensor | None
    log_sum_exp: Tensor | None = None


def attention_statistics(
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
    column_sums: bool = False,
    rows: int = 0,
    log_sum_exp: bool = False,
) -> AttentionStatistics:
    """The probabilities of :func:`paged_attention` with the same arguments, without its output.

    Several layers of one pool are one call: a pool [num_pages, num_layers, 2, ...] seen as [num_pages * num_layers, 2,
    ...] has layer l of page p at p * num_layers + l, and each layer of a segment becomes a segment.

    Parameters
    ----------
    query, pool, page_table, query_starts, positions: as for :func:`paged_attention`; key k of a segment is the one at
        position k of its page table.
    scale, window, softcap, key_cos, key_sin: as for :func:`paged_attention`.
    column_sums: whether the sums are wanted.
    rows: of how many of the last queries the rows are wanted.
    log_sum_exp: whether it is wanted, of all queries.

    Returns
    -------
    w = min(``rows``, queries of the segment that has most). Scores are computed in float32.

    Raises
    ------
    ValueError: an argument's shape, dtype, device or stride does not fit, ``rows`` is negative, or an index is out of
        range.
    """
    if rows < 0:
        raise ValueError(f"rows is {rows}: expected 0 or more")
    call = AttentionCall(
        query=query,
        pool=pool,
        page_table=page_table,
        query_starts=query_starts,
        positions=positions,
        out=query,  # there is none
        lse=query.new_empty(query.shape[:2], dtype=torch.float32) if log_sum_exp else None,
        scale=scale,
        window=window,
        softcap=softcap,
        key_cos=key_cos,
        key_sin=key_sin,
    )
    call.check()
    return AttentionStatistics(*_implementation(query.device)(call, column_sums, rows), call.lse)


def _implementation(device: torch.device) -> Callable[[AttentionCall, bool, int], tuple[Tensor | None, Tensor | None]]:
    """What computes on ``device``: the one place of dispatch."""
    native = library() if device.type == "cpu" else None
    return gather_statistics if native is None else partial(native_statistics, native)
