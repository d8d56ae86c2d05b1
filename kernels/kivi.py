"""KIVI's numbers: asymmetric 2, 4 or 8-bit codes, keys grouped per channel over tokens, values per token over channels.

Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", ICML 2024, section 3; the official code's
``quant/new_pack.py``: scale = (max - min) / (2^bits - 1), code = round(clamp((x - min) / scale)), halves to even. A
group whose numbers are all equal has scale 0 and codes 0 here (there: NaN). Arithmetic is float32 whatever the dtype;
scales and minima are kept in the dtype of the numbers. Plain torch operations: the same on every device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention_call import DTYPES

BITS = (2, 4, 8)
WORD = 32


@dataclass(frozen=True, slots=True)
class Quantised:
    """Numbers as codes: value = code * scale + minimum of its group.

    Attributes
    ----------
    codes: int32, 32 / bits codes in a word, the first in the lowest bits; packed along the dimension that was grouped.
    scales, minima: one for each group; as the numbers, but for the grouped dimension.
    """

    codes: Tensor
    scales: Tensor
    minima: Tensor


def quantise_keys(keys: Tensor, bits: int, group: int) -> Quantised:
    """Codes of keys [..., tokens, head_dim]: each channel in groups of ``group`` consecutive tokens.

    Returns
    -------
    codes int32 [..., tokens * bits / 32, head_dim]; scales and minima [..., tokens / group, head_dim].

    Raises
    ------
    ValueError: bits not 2, 4 or 8, or tokens not a multiple of ``group`` and of the codes in a word.
    """
    return _quantise(keys, bits, group, -2)


def quantise_values(values: Tensor, bits: int, group: int) -> Quantised:
    """Codes of values [..., tokens, head_dim]: each token in groups of ``group`` channels.

    Returns
    -------
    codes int32 [..., tokens, head_dim * bits / 32]; scales and minima [..., tokens, head_dim / group].

    Raises
    ------
    ValueError: bits not 2, 4 or 8, or head_dim not a multiple of ``group`` and of the codes in a word.
    """
    return _quantise(values, bits, group, -1)


def dequantise_keys(packed: Quantised, bits: int) -> Tensor:
    """The keys that :func:`quantise_keys` rounded, [..., tokens, head_dim], in the dtype of the scales."""
    codes, groups = unpack_codes(packed.codes, bits, -2), packed.scales.shape[-2]
    grouped = torch.unflatten(codes, -2, (groups, codes.shape[-2] // max(1, groups)))
    return restore(grouped, packed.scales[..., None, :], packed.minima[..., None, :]).flatten(-3, -2)


def dequantise_values(packed: Quantised, bits: int) -> Tensor:
    """The values that :func:`quantise_values` rounded, [..., tokens, head_dim], in the dtype of the scales."""
    codes, groups = unpack_codes(packed.codes, bits, -1), packed.scales.shape[-1]
    grouped = torch.unflatten(codes, -1, (groups, codes.shape[-1] // max(1, groups)))
    return restore(grouped, packed.scales[..., None], packed.minima[..., None]).flatten(-2)


def restore(codes: Tensor, scales: Tensor, minima: Tensor) -> Tensor:
    """``codes`` * ``scales`` + ``minima``, by broadcasting: computed in float32, returned in the scales' dtype."""
    return (codes * scales.float() + minima.float()).to(scales.dtype)


def pack_codes(codes: Tensor, bits: int, dim: int) -> Tensor:
    """Pack codes 0 .. 2^bits - 1 (any integer dtype) along ``dim`` into int32, the first in the lowest bits.

    Raises
    ------
    ValueError: bits not 2, 4 or 8, or the dimension is no multiple of 32 / bits.
    """
    per_word = _per_word(bits)
    if codes.shape[dim] % per_word:
        raise ValueError(f"{codes.shape[dim]} codes of {bits} bits: expected a multiple of {per_word}")
    parts = torch.unflatten(codes.movedim(dim, -1), -1, (codes.shape[dim] // per_word, per_word)).to(torch.int32)
    words: Tensor = parts[..., 0].clone()
    for place in range(1, per_word):
        words |= parts[..., place] << (place * bits)
    moved: Tensor = words.movedim(-1, dim)
    return moved


def unpack_codes(words: Tensor, bits: int, dim: int) -> Tensor:
    """The codes of :func:`pack_codes`, uint8."""
    _per_word(bits)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=words.device)
    along = words.movedim(dim, -1).clone(memory_format=torch.contiguous_format)
    octets = along.view(torch.uint8)  # low bits first on every machine that torch runs on
    codes: Tensor = ((octets[..., None] >> shifts) & (2**bits - 1)).flatten(-2).movedim(-1, dim)
    return codes


def _per_word(bits: int) -> int:
    if bits not in BITS:
        raise ValueError(f"bits is {bits}: expected one of {', '.join(map(str, BITS))}")
    return WORD // bits


def _quantise(numbers: Tensor, bits: int, group: int, dim: int) -> Quantised:
    per_word = _per_word(bits)
    if numbers.dtype not in DTYPES or numbers.dim() < 2:
        raise ValueError(f"numbers of {numbers.dim()} dimensions and {numbers.dtype}: expected 2 or more, and a float")
    size = numbers.shape[dim]
    if group < 1 or size % group or size % per_word:
        what = "tokens" if dim == -2 else "channels"
        raise ValueError(f"{size} {what} in groups of {group}: expected a multiple of the group and of {per_word}")
    grouped = torch.unflatten(numbers.float().movedim(dim, -1), -1, (size // group, group))
    minima = grouped.amin(-1)  # exact in the numbers' dtype
    scales = ((grouped.amax(-1) - minima) / (2**bits - 1)).to(numbers.dtype)
    steps = (grouped - minima[..., None]) / scales.float()[..., None]
    codes = steps.masked_fill(scales[..., None] == 0, 0.0).clamp(0, 2**bits - 1).round()
    packed = pack_codes(codes.flatten(-2).to(torch.uint8).movedim(-1, dim), bits, dim)
    return Quantised(packed, scales.movedim(-1, dim), minima.to(numbers.dtype).movedim(-1, dim))
