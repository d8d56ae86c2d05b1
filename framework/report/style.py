"""One look for one system, in every figure: colour and line follow from its name alone."""

from __future__ import annotations

import colorsys
import zlib
from dataclasses import dataclass

_KNOWN = {
    "vllm_stateless": "#7f7f7f",
    "vllm": "#0072b2",
    "vllm_offload": "#56b4e9",
    "sglang_hicache": "#cc79a7",
    "pensieve_gpu": "#e69f00",
    "pensieve": "#d55e00",
    "cachedattention": "#009e73",
    "h2o": "#8c564b",
    "streaming_llm": "#a6a200",
    "memserve": "#6a3d9a",
    "mooncake": "#17a2b8",
    # eviction
    "lru": "#0072b2",
    "fifo": "#8c564b",
    "lfu": "#cc79a7",
    "arc": "#d55e00",
    "s3fifo": "#009e73",
    "slru": "#56b4e9",
    "gdsf": "#6a3d9a",
    "ttl": "#a6a200",
    "lookahead": "#e69f00",
    "retention": "#b2182b",
    "belady": "#222222",
    "infinite": "#777777",
    # token-level truncation
    "tova": "#0072b2",
    "snapkv": "#d55e00",
    "pyramidkv": "#e69f00",
    "adakv": "#009e73",
    "expected_attention": "#44aa99",
    "knorm": "#cc79a7",
    "keydiff": "#56b4e9",
    "corm": "#b2182b",
    "buzz": "#6a3d9a",
    "window": "#c49c6b",
    "quest": "#1b7837",
    "random": "#8a8a8a",
    "future": "#111111",
}
_DASHES = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


@dataclass(frozen=True, slots=True)
class Look:
    """``colour`` as #rrggbb; ``line`` a matplotlib line style, solid for a plain system, broken for an ablation."""

    colour: str
    line: str | tuple[int, tuple[int, ...]]


def look(system: str) -> Look:
    """The look of ``system`` (a run's label): the same in every figure, whatever else is drawn."""
    if system in _KNOWN:
        return Look(_KNOWN[system], "-")
    code = zlib.crc32(system.encode())
    hue, light = (code % 997) / 997, 0.34 + 0.08 * (code // 997 % 3)
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, light, 0.75))
    line = _DASHES[code // 2991 % len(_DASHES)] if "+" in system else "-"
    return Look(f"#{red:02x}{green:02x}{blue:02x}", line)
