"""What stays of a context moves to its front slots, equally many in every plane."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import PoolRows


def compact(rows: PoolRows, table: Tensor, keep: Tensor, kept: int, ascending: bool) -> Tensor:
    """Move K/V so that the kept slots of each plane become its slots 0 .. ``kept``.

    Parameters
    ----------
    table: int32 [pages] of the context.
    keep: bool [L, G, n], ``kept`` true ones in each plane.
    ascending: survivors keep their order. Else only those behind the new end move, into the holes before it.

    Returns
    -------
    int64 [L, G, kept], the slot that each one was before.
    """
    planes = keep.flatten(0, 1)
    columns, plane, source, target = (_in_order if ascending else _filled)(planes, kept)
    if plane.numel():
        rows.move(rows.of_slots(table, torch.stack((source, target))) + rows.planes[plane])
    return columns.view(*keep.shape[:2], kept)


def _in_order(planes: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Survivors close up. Returns int64 [planes, kept], the column that each one was, and of each move its plane, its
    source and its target column."""
    columns = planes.nonzero()[:, 1].view(len(planes), kept)
    plane, target = (columns != torch.arange(kept, device=planes.device)).nonzero(as_tuple=True)
    return columns, plane, columns[plane, target], target


def _filled(planes: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`_in_order`, but who can stays where it is, and the others fill the holes."""
    columns = torch.arange(kept, device=planes.device).expand(len(planes), kept).contiguous()
    # A plane has as many holes before its new end as survivors behind it, and both come out plane by plane.
    plane, target = (~planes[:, :kept]).nonzero(as_tuple=True)
    source = planes[:, kept:].nonzero(as_tuple=True)[1] + kept
    columns[plane, target] = source
    return columns, plane, source, target
