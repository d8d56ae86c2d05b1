"""The executor's door to everything that loses something."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...policy import Compression, Selection, TokenTruncation
from ..contract import ModelShape, Segment
from ..packing import PackedBatch
from ..rotation import ModelRotation
from .arranging import Arrangement, arrange
from .assembling import packing_form, selecting_form
from .contexts import ContextMemory
from .forms import Form
from .narrowing import Narrower, Pass
from .view import Futures


class LossySide:
    """The policies of a run that let go of tokens, store them packed or attend to some of them, over ``pool``."""

    def __init__(
        self,
        pool: Tensor,
        num_heads: int,
        truncation: TokenTruncation | None,
        selection: Selection | None,
        compression: Compression | None,
        rotation: ModelRotation | None = None,
    ) -> None:
        """``rotation``: of the model, for a truncation that needs un-rotated queries."""
        self._pool = pool
        narrows = truncation is not None or compression is not None
        packing = packing_form(compression, pool.shape[-1]) if narrows else None
        self._forms: list[Form] = [] if packing is None else [packing]
        if selection is not None:
            self._forms.append(selecting_form(selection))
        self._narrower = Narrower(pool, num_heads, truncation, compression, packing, rotation)

    def begin(self, segments: Sequence[Segment], packed: PackedBatch) -> tuple[Pass | None, Arrangement]:
        """Before the forward pass: the narrowed contexts in it (None: none), and who attends to what.

        Raises
        ------
        ValueError
            If the segment of a narrowed context does not begin where the context ends.
        """
        narrowed = self._narrower.begin(segments, packed.page_table)
        return narrowed, arrange(self._pool, self._pool.shape[4], self._forms, segments, packed, narrowed)

    def settle(self, narrowed: Pass, futures: Futures | None) -> dict[int, int]:
        """After it: what stays. The slots of each context that takes fewer now."""
        return self._narrower.settle(narrowed, futures)

    def memory(self, context: int) -> ContextMemory | None:
        """What is remembered of a narrowed context, not to be changed; None if nothing is."""
        return self._narrower.memory(context)

    def forget(self, context: int) -> None:
        """Drop what is remembered of a narrowed context."""
        self._narrower.forget(context)


def check_positions(
    truncation: TokenTruncation | None,
    selection: Selection | None,
    compression: Compression | None,
    decoupled: bool,
) -> None:
    """Refuse positions that the cached keys do not allow.

    Raises
    ------
    ValueError
        Naming ``backend.decoupled``.
    """
    if truncation is not None and (truncation.positions == "cache") != decoupled:
        raise ValueError(
            f"truncation {truncation.name!r} has positions={truncation.positions}, which needs backend.decoupled="
            f"{'false' if decoupled else 'true'} (found {str(decoupled).lower()})"
        )
    for family, policy in (("truncation", selection), ("compression", compression)):
        if policy is not None and decoupled:
            raise ValueError(f"{family} {policy.name!r} needs backend.decoupled=false (found true)")


def check_windows(shape: ModelShape, windows: Sequence[int | None]) -> None:
    """Refuse layers that look back a fixed number of tokens: after a cut, places in the cache do not tell how far a
    token is away.

    Raises
    ------
    ValueError
        Naming the model.
    """
    narrow = [window for window in windows if window is not None and window < shape.max_positions]
    if narrow:
        raise ValueError(
            f"token-level truncation and compression need layers that see the whole context; {shape.name!r} has "
            f"layers with a window of {min(narrow)} tokens"
        )
