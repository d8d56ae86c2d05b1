"""A context whose oldest tokens were cut off."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .mixing import mix_array, mix_int
from .tokens import TokenLog


class ShiftedLog:
    """``base`` without its first ``dropped`` tokens; a :class:`TokenLog` that extends ``base`` when it is extended.

    Pages that end within the first ``stored`` tokens of ``base`` keep their keys: their K/V were computed before the
    cut, and saw what is gone now. Later pages get keys of their own, for theirs will not have seen it.

    Parameters
    ----------
    dropped: tokens, a multiple of every page size that keys are asked for; ``stored`` 0: nothing stored stays in use.

    Raises
    ------
    ValueError
        If more is dropped than ``base`` holds.
    """

    __slots__ = ("_salt", "_stored", "base", "dropped")

    def __init__(self, base: TokenLog, dropped: int, stored: int = 0) -> None:
        if not 0 <= dropped <= len(base):
            raise ValueError(f"{dropped} tokens are to be dropped of {len(base)}")
        self.base = base
        self.dropped = dropped
        self._stored = stored
        self._salt = mix_int("cut", dropped, stored)

    def __len__(self) -> int:
        return len(self.base) - self.dropped

    def extend(self, num_tokens: int, ids: NDArray[np.int32] | None = None) -> None:
        """See :class:`TokenLog`."""
        self.base.extend(num_tokens, ids)

    def page_keys(self, page_size: int, num_tokens: int) -> NDArray[np.int64]:
        """See :class:`TokenLog`. O(pages)."""
        if self.dropped % page_size:
            raise ValueError(f"{self.dropped} dropped tokens are no multiple of page_size {page_size}")
        keys = self.base.page_keys(page_size, num_tokens + self.dropped)[self.dropped // page_size :]
        kept = max(0, self._stored - self.dropped) // page_size
        return np.concatenate([keys[:kept], mix_array(self._salt, keys[kept:])])

    def tail_key(self, page_size: int, num_tokens: int) -> int:
        """See :class:`TokenLog`."""
        key = self.base.tail_key(page_size, num_tokens + self.dropped)
        if num_tokens + self.dropped <= self._stored:
            return key
        return int(mix_array(self._salt, np.array([key], dtype=np.int64))[0])

    def ids(self, start: int, stop: int) -> NDArray[np.int32]:
        """See :class:`TokenLog`."""
        return self.base.ids(start + self.dropped, stop + self.dropped)
