"""The tokens stay that later queries will look at: it sees the future."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...framework.policy import AttentionTruncation, CacheView, register

if TYPE_CHECKING:
    from torch import Tensor


@register("truncation", "future")
@dataclass
class Future(AttentionTruncation):
    """An oracle: the tokens stay to which all later queries, under the full cache, will give the most attention.

    It is H2O's question asked of the future instead of the past, one token at a time: what the survivors' attention
    becomes once others have left is not weighed, so that it bounds what attention sums can know rather than all that a
    set of tokens could achieve. Query heads that share a KV head are combined by ``group``.
    """

    oracle: ClassVar[bool] = True

    def score(self, view: CacheView) -> Tensor:
        return view.grouped(view.future(), self.group)
