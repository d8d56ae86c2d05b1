"""The context is never cut."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import Truncation, register


@register("truncation", "none")
@dataclass
class NoTruncation(Truncation):
    """All tokens are kept; a request that does not fit fails."""

    def first_kept(self, history_tokens: int, needed_tokens: int, limit: int) -> int:
        return 0
