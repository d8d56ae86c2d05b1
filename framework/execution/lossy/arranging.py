"""Who attends to which rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import FormedPart
from ..contract import Segment
from ..packing import PackedBatch
from .forms import Form, FormedSegment, LayerCall
from .narrowing import Pass


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The fields of a ``PagedContext`` that say so."""

    page_table: Tensor
    query_starts: Tensor
    positions: Tensor
    rows: Tensor | None
    formed: tuple[FormedPart, ...]
    hears: tuple[Callable[[LayerCall, Tensor], None], ...]


def plain(packed: PackedBatch) -> Arrangement:
    """Plain attention everywhere."""
    return Arrangement(packed.page_table, packed.query_starts, packed.positions, None, (), ())


def arrange(
    pool: Tensor,
    page_size: int,
    forms: Sequence[Form],
    segments: Sequence[Segment],
    packed: PackedBatch,
    narrowed: Pass | None,
) -> Arrangement:
    """Plain attention, but for the segments that one of ``forms`` claims: the first that does."""
    hears = () if narrowed is None or narrowed.watch is None else (narrowed.watch.attended,)
    claims = _claims(page_size, forms, segments, packed, narrowed) if forms else []
    if not any(claimed for _, claimed in claims):
        return Arrangement(packed.page_table, packed.query_starts, packed.positions, None, (), hears)
    parts = tuple(
        FormedPart(_rows([each for _, each in claimed], packed), form.begin(pool, [each for _, each in claimed]))
        for form, claimed in claims
        if claimed
    )
    taken = {i for _, claimed in claims for i, _ in claimed}
    left = [i for i in range(len(segments)) if i not in taken]
    index = torch.tensor(left, dtype=torch.int64, device=packed.positions.device)
    lengths = packed.query_starts.diff()[index]
    starts = torch.cat((lengths.new_zeros(1), lengths.cumsum(0, dtype=torch.int32)))
    owner = torch.ones_like(packed.input_ids, dtype=torch.bool)
    owner[torch.cat([part.rows for part in parts])] = False
    rows = owner.nonzero()[:, 0]
    return Arrangement(packed.page_table[index], starts, packed.positions[index], rows, parts, hears)


def _claims(
    page_size: int, forms: Sequence[Form], segments: Sequence[Segment], packed: PackedBatch, narrowed: Pass | None
) -> list[tuple[Form, list[tuple[int, FormedSegment]]]]:
    """Each form with the segments that it claims, and their indices."""
    places = _places(page_size, segments, packed, narrowed)
    claims: list[tuple[Form, list[tuple[int, FormedSegment]]]] = [(form, []) for form in forms]
    for i, place in enumerate(places):
        for form, claimed in claims:
            if form.claims(place.memory, place.start, place.length):
                claimed.append((i, place))
                break
    return claims


def _places(
    page_size: int, segments: Sequence[Segment], packed: PackedBatch, narrowed: Pass | None
) -> list[FormedSegment]:
    known = {} if narrowed is None else {s.segment.rows.start: s.segment for s in narrowed.steps}
    places, row = [], 0
    for i, segment in enumerate(segments):
        table = packed.page_table[i, : -(-(segment.start + segment.length) // page_size)]
        ordinary = FormedSegment(slice(row, row + segment.length), segment.start, table, None, segment.request)
        places.append(known.get(row, ordinary))
        row += segment.length
    return places


def _rows(claimed: list[FormedSegment], packed: PackedBatch) -> Tensor:
    device = packed.input_ids.device
    return torch.cat([torch.arange(each.rows.start, each.rows.stop, device=device) for each in claimed])
