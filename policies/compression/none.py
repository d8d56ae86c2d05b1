"""K and V are stored as the model computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...framework.policy import Compression, register


@register("compression", "none")
@dataclass
class NoCompression(Compression):
    """The native form."""

    packs: ClassVar[bool] = False

    def bytes_per_token(self, native_bytes: int, number_bytes: int = 2) -> float:
        return native_bytes
