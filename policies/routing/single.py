"""One instance serves everything."""

from __future__ import annotations

from dataclasses import dataclass

from ...framework.policy import RequestView, Routing, register


@register("routing", "single")
@dataclass
class SingleInstance(Routing):
    """Every request goes to the first instance."""

    def route(self, request: RequestView, instances: int) -> int:
        return 0
