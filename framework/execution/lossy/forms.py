"""Attention over a cache that is not an ordinary row of pages, and packing into such forms.

Two places of the executor ask a form. In every layer the segments that a form claims are attended by it, all others by
the plain paged attention (``PagedContext.attend``). After the forward pass a :class:`PackingForm` packs what a policy
kept where its planes differ in length, or where a compression packs it anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...policy import Stage
from .contexts import ContextMemory, Front


@dataclass(frozen=True, slots=True)
class FormedSegment:
    """A segment whose attention is done by a form.

    Attributes
    ----------
    rows: its queries in the batch.
    start: slot of the first of them, as in ``Segment.start``.
    table: int32 [pages], the context's pages, those of the segment's own tokens included, on the pool's device.
    memory: of a narrowed context, as it was after the last step: the columns of the segment's own tokens, which are
        slots ``start`` .., are not in it yet. None: an ordinary context (page selection).
    request: of ``Segment.request``; equal numbers from 0 on: the same tokens in the same order.
    """

    rows: slice
    start: int
    table: Tensor
    memory: ContextMemory | None
    request: int = -1

    @property
    def length(self) -> int:
        """How many queries."""
        return int(self.rows.stop - self.rows.start)


@dataclass(frozen=True, slots=True)
class LayerCall:
    """The attention of one layer. K/V of the whole batch have been written into the ordinary slots.

    Attributes
    ----------
    layer: its index.
    query: [num_tokens, H, head_dim], of the whole batch, rotated.
    unrotated: the same before rotation, where attention rotates; None: where the model does.
    scale, window, softcap, key_cos, key_sin: as in ``kernels.paged_attention``. With narrowed contexts there is no
        window, and with a compression or a selection no key_cos: such runs are refused before.
    """

    layer: int
    query: Tensor
    scale: float
    window: int | None
    softcap: float | None
    key_cos: Tensor | None
    key_sin: Tensor | None
    unrotated: Tensor | None = None


class Attending(Protocol):
    """The attention of one forward pass over some segments.

    Attributes
    ----------
    reads_all_layers: a layer's attention may read what lies in the pages of other layers.
    """

    reads_all_layers: bool

    def attend(self, call: LayerCall) -> Tensor:
        """[tokens of all its segments, H, head_dim], one segment after another, in the query's dtype. A query sees all
        of a front, and of the ordinary slots those up to its own."""
        ...


class Form(Protocol):
    """Attends to what it has packed, or chosen."""

    def claims(self, memory: ContextMemory | None, start: int, length: int) -> bool:
        """Whether the attention of such a segment (see :class:`FormedSegment`) is this form's."""
        ...

    def begin(self, pool: Tensor, segments: Sequence[FormedSegment]) -> Attending:
        """Prepare one forward pass over ``segments``, which it claimed: what all layers share is made here.

        ``pool``: [num_pages, L, 2, G, page_size, head_dim].
        """
        ...


@dataclass(frozen=True, slots=True)
class Packed:
    """What packing left.

    Attributes
    ----------
    front: the new one; None: all columns are ordinary slots again.
    columns: int64 [L, G, n'], for each column of the context now the column that it was, -1: nothing (a plane that does
        not fill the front). Columns behind ``front.columns`` are the ordinary slots behind the front's pages; none of
        theirs is -1.
    """

    front: Front | None
    columns: Tensor


class PackingForm(Form, Protocol):
    """Makes fronts. Claims exactly the contexts that have one."""

    def pack(
        self, pool: Tensor, table: Tensor, memory: ContextMemory, keep: Tensor | None, stage: Stage
    ) -> Packed | None:
        """Pack what a context holds into fewer pages, after a step and its ``observe`` and ``keep``.

        Asked when planes keep different numbers of tokens, when tokens leave a context that has a front, and with a
        compression after every step (then cheap when nothing is to be done). K/V that stay ordinary are moved by it as
        well.

        Parameters
        ----------
        pool: [num_pages, L, 2, G, page_size, head_dim], changed in place within the pages of ``table`` only.
        table: int32 [pages], of the whole context; on the pool's device.
        memory: with this step's columns; not changed.
        keep: bool [L, G, n], at least one in each plane; None: everything stays. False in padded columns.
        stage: of the step, as in ``CacheView``.

        Returns
        -------
        None where nothing is packed (it would not take fewer pages, or there is too little): nothing has changed then,
        and all columns stay, those that ``keep`` gives up included.
        """
        ...
