"""What token-level policies leave of a context where nothing is computed: sizes only."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..policy import Compression, TokenTruncation
from .contract import Segment


class SimulatedNarrowing:
    """Counts, for each narrowed context, the tokens that a plane caches on average and the slots that they take.

    Parameters
    ----------
    truncation: what lets go of tokens; None: nothing does.
    compression: in what form the rest is stored.
    page_size: tokens in a page; packed tokens take whole pages.
    native_bytes: of K/V of one token. number_bytes: of one number of it.
    """

    def __init__(
        self,
        truncation: TokenTruncation | None,
        compression: Compression,
        page_size: int,
        native_bytes: int,
        number_bytes: int = 2,
    ) -> None:
        self._truncation, self._compression = truncation, compression
        self._page_size = page_size
        self._share = compression.bytes_per_token(native_bytes, number_bytes) / native_bytes
        self._cached: dict[int, float] = {}

    def slots(self, segments: Iterable[Segment]) -> dict[int, int]:
        """The slots that each narrowed context of ``segments`` takes after them, where those have become fewer."""
        fewer: dict[int, int] = {}
        for segment in segments:
            if (narrowing := segment.narrowing) is None:
                continue
            before = self._cached.get(narrowing.context, 0.0) + segment.length
            kept = before
            if self._truncation is not None:
                kept = self._truncation.kept_tokens(math.ceil(before), narrowing.tokens, narrowing.stage)
            slots = self._taken(math.ceil(kept))
            if slots < segment.start + segment.length:
                fewer[narrowing.context] = slots
                self._cached[narrowing.context] = kept
            else:  # nothing is let go of as long as that would free nothing
                self._cached[narrowing.context] = before
        return fewer

    def _taken(self, tokens: int) -> int:
        packed = self._compression.packed_tokens(tokens)
        pages = math.ceil(packed * self._share / self._page_size)
        return pages * self._page_size + tokens - packed

    def forget(self, context: int) -> None:
        """The context of that number is no more."""
        self._cached.pop(context, None)
