"""Keys and values in 2 or 4 bits, the newest tokens as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...framework.policy import Codec, Compression, register, require_at_least
from .kivi_codec import KiviCodec


@register("compression", "kivi")
@dataclass
class Kivi(Compression):
    """Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", ICML 2024, sections 3.2 and 3.3,
    algorithm 1; official code ``quant/new_pack.py`` and ``models/llama_kivi.py``.

    Within a group code = round((x - min) / scale), scale = (max - min) / (2^bits - 1), halves to even, and x' = code *
    scale + min. Keys (rotated) are grouped per channel over ``group`` consecutive tokens, values per token over
    ``group`` channels. Prompts attend in full precision; after a prompt and after each decoded token

    - keys: once the unrounded tail reaches ``residual`` tokens all of it is rounded (n - n mod residual tokens are);
    - values: all but the last ``residual`` tokens are rounded, one more with each decoded token.

    Codes are packed low bits first into int32; scales and minima have the dtype of the cache. Tokens are packed in
    blocks of ``residual`` once their values are rounded too, if that frees slots; until then pages hold the rounded
    numbers.

    Defaults: ``bits`` 2, ``group`` 32, ``residual`` 32, those of the official examples.

    Deviations: a group of equal numbers comes back exactly (official: NaN); arithmetic is float32 (official: float16);
    in later turns a prompt attends to the rounded history and to its own tokens in full precision (the official code
    serves one turn). Under a truncation the survivors are packed. A key whose neighbours leave keeps its code and the
    scales of its group, which stay as long as one member does: ``bytes_per_token`` is then a lower bound. Where heads
    let go of different tokens, one that must leave the packed part is stored rounded, and packed again with other
    neighbours; where planes hold different numbers of tokens, what the longer ones have more is packed however new.
    """

    bits: int = 2
    group: int = 32
    residual: int = 32

    lossless: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.bits not in (2, 4):
            raise ValueError(f"bits is {self.bits}; it must be 2 or 4")
        require_at_least(self, 1, "group")
        words = 32 // self.bits
        if self.group % words and words % self.group:
            raise ValueError(f"group is {self.group}; it must divide or be a multiple of the {words} codes of a word")
        if self.residual < 1 or self.residual % self.group or self.residual % words:
            raise ValueError(
                f"residual is {self.residual}; it must be a multiple of group = {self.group} and of the {words} codes "
                "of a word"
            )

    def bytes_per_token(self, native_bytes: int, number_bytes: int = 2) -> float:
        """Scales and minima are two numbers for each group of ``group``."""
        numbers = native_bytes / number_bytes
        return numbers * (self.bits / 8 + 2 * number_bytes / self.group)

    def packed_tokens(self, cached_tokens: int) -> int:
        return max(0, cached_tokens // self.residual - 1) * self.residual

    def codec(self, head_dim: int) -> Codec:
        return KiviCodec(self.bits, self.group, self.residual, head_dim)
