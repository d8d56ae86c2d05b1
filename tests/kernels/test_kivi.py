"""KIVI's codes: the official ones to the integer, and what rounding may cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvarena.kernels.kivi import (
    BITS,
    dequantise_keys,
    dequantise_values,
    pack_codes,
    quantise_keys,
    quantise_values,
    unpack_codes,
)

ROUND_TRIPS = {"keys": (quantise_keys, dequantise_keys), "values": (quantise_values, dequantise_values)}


def naive(numbers: list[float], bits: int) -> tuple[list[int], float, float]:
    """Codes, scale and minimum of one group, a number at a time."""
    low, high = min(numbers), max(numbers)
    scale = (high - low) / (2**bits - 1)
    return [round(min(max((x - low) / scale, 0), 2**bits - 1)) if scale else 0 for x in numbers], scale, low


def test_golden_codes_of_the_official_implementation() -> None:
    t, d = torch.arange(16.0)[:, None], torch.arange(2.0)[None]
    packed = quantise_keys(torch.cos(0.23 * (t + 1) * (d + 2)), 2, 16)
    assert packed.codes.tolist() == [[-1075511189, -1871715301]]
    torch.testing.assert_close(packed.scales, torch.tensor([[0.66155249, 0.65659523]]), rtol=1e-7, atol=0)
    torch.testing.assert_close(packed.minima, torch.tensor([[-0.99692774, -0.97246259]]), rtol=1e-7, atol=0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["keys", "values"])
def test_equals_one_number_at_a_time(kind: str, bits: int) -> None:
    numbers = torch.randn(2, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)).float()
    packed = ROUND_TRIPS[kind][0](numbers, bits, 16)
    dim = -2 if kind == "keys" else -1
    codes = unpack_codes(packed.codes, bits, dim).movedim(dim, -1)
    rows = numbers.movedim(dim, -1)
    for i, j, k in [(0, 0, 0), (1, 31, 1), (0, 5, 1), (1, 17, 0)]:
        expected, scale, low = naive(rows[i, j, k * 16 : k * 16 + 16].tolist(), bits)
        assert codes[i, j, k * 16 : k * 16 + 16].tolist() == expected
        assert packed.scales.movedim(dim, -1)[i, j, k].item() == pytest.approx(scale, rel=1e-6)
        assert packed.minima.movedim(dim, -1)[i, j, k].item() == low


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["keys", "values"])
def test_the_error_is_at_most_half_a_scale(kind: str, bits: int, dtype: torch.dtype) -> None:
    numbers = (3 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(bits))).to(dtype)
    quantise, dequantise = ROUND_TRIPS[kind]
    packed = quantise(numbers, bits, 32)
    restored = dequantise(packed, bits)
    assert restored.dtype == dtype
    scales = packed.scales.float().repeat_interleave(32, -2 if kind == "keys" else -1)
    rounding = numbers.float().abs().max() * 2**bits * torch.finfo(dtype).eps  # of the scale and of the result
    assert ((restored.float() - numbers.float()).abs() <= scales / 2 + rounding).all()
    if bits == 8 and dtype == torch.float32:
        assert (restored - numbers).abs().max() < 0.05


@pytest.mark.parametrize("kind", ["keys", "values"])
def test_rounding_again_changes_no_code(kind: str) -> None:
    quantise, dequantise = ROUND_TRIPS[kind]
    packed = quantise(torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(1)), 2, 32)
    again = quantise(dequantise(packed, 2), 2, 32)
    assert torch.equal(again.codes, packed.codes)
    torch.testing.assert_close(again.scales, packed.scales, rtol=1e-6, atol=0)


def test_a_constant_group_comes_back_exactly() -> None:
    numbers = torch.full((16, 32), 0.7)
    for quantise, dequantise in ROUND_TRIPS.values():
        packed = quantise(numbers, 2, 16)
        assert not packed.codes.any()
        assert torch.equal(dequantise(packed, 2), numbers)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_codes_survive_packing_in_any_dimension(bits: int, dim: int) -> None:
    codes = torch.randint(0, 2**bits, (32, 48, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    words = pack_codes(codes, bits, dim)
    assert words.dtype == torch.int32
    assert words.numel() * 32 == codes.numel() * bits
    assert torch.equal(unpack_codes(words, bits, dim), codes)
    first = words.movedim(dim, -1)[0, 0, 0].item() & (2**bits - 1)
    assert first == codes.movedim(dim, -1)[0, 0, 0].item()


def test_no_tokens_are_no_codes() -> None:
    packed = quantise_keys(torch.empty(2, 0, 32), 2, 16)
    assert dequantise_keys(packed, 2).shape == (2, 0, 32)


@pytest.mark.parametrize(
    ("numbers", "bits", "group", "message"),
    [
        (torch.zeros(16, 16), 3, 16, "bits is 3: expected one of 2, 4, 8"),
        (torch.zeros(24, 16), 2, 16, "24 tokens in groups of 16"),
        (torch.zeros(8, 16), 2, 8, "expected a multiple of the group and of 16"),
        (torch.zeros(16, 16), 2, 0, "groups of 0"),
        (torch.zeros(16, 16, dtype=torch.int32), 2, 16, "int32"),
    ],
)
def test_bad_arguments_are_refused(numbers: Tensor, bits: int, group: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantise_keys(numbers, bits, group)


def test_codes_that_fill_no_word_are_refused() -> None:
    with pytest.raises(ValueError, match="12 codes of 4 bits: expected a multiple of 8"):
        pack_codes(torch.zeros(12, dtype=torch.uint8), 4, 0)
