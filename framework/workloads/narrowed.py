"""A context as the slots of its cache, where a token-level policy decides what stays of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .mixing import mix_array, mix_int
from .tokens import TokenLog


class NarrowedLog:
    """``base`` in slots: a :class:`TokenLog` whose newest tokens are those of ``base``, without what was let go of.

    Its pages are nobody else's, and only a cache that was kept whole can be found again.

    Parameters
    ----------
    nonce: makes the keys differ from those of other runs that share a disk tier.
    lasting: a later turn continues this log.

    Attributes
    ----------
    context: the number of the context; each time it is begun anew it gets another one.
    offset: how many tokens ``base`` is longer.
    stored: slots that a later turn needs to find, all of them.
    fresh: nothing of the context has been computed yet.
    """

    __slots__ = ("_nonce", "_salt", "base", "context", "fresh", "lasting", "offset", "stored")

    def __init__(self, base: TokenLog, context: int, *, nonce: int = 0, lasting: bool = True) -> None:
        self.base = base
        self.lasting = lasting
        self._nonce = nonce
        self.begin(context)

    def begin(self, context: int) -> None:
        """All tokens are to be computed, as the context of this number."""
        self.context = context
        self.offset = self.stored = 0
        self.fresh = True
        self._salt = mix_int("narrowed", self._nonce, context)

    def __len__(self) -> int:
        return len(self.base) - self.offset

    def extend(self, num_tokens: int, ids: NDArray[np.int32] | None = None) -> None:
        """See :class:`TokenLog`."""
        self.base.extend(num_tokens, ids)

    def page_keys(self, page_size: int, num_tokens: int) -> NDArray[np.int64]:
        """See :class:`TokenLog`: by place, whatever the pages hold."""
        return mix_array(self._salt, np.arange(num_tokens // page_size))

    def tail_key(self, page_size: int, num_tokens: int) -> int:
        """See :class:`TokenLog`."""
        return int(mix_array(self._salt, np.array([-1 - num_tokens]))[0])

    def ids(self, start: int, stop: int) -> NDArray[np.int32]:
        """See :class:`TokenLog`; only of slots that were not filled yet when the context was narrowed last."""
        return self.base.ids(start + self.offset, stop + self.offset)


def whole_log(log: TokenLog) -> TokenLog:
    """All tokens of ``log``."""
    return log.base if isinstance(log, NarrowedLog) else log
