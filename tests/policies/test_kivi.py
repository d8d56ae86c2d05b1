"""KIVI's knobs, sizes and packed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kvarena.framework.policy import Due
from kvarena.policies.compression.kivi import Kivi


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"bits": 3}, "bits is 3; it must be 2 or 4"),
        ({"bits": 8}, "bits is 8; it must be 2 or 4"),
        ({"group": 0}, "group is 0; it must be at least 1"),
        ({"group": 24, "residual": 48}, "group is 24; it must divide or be a multiple of the 16 codes"),
        ({"residual": 48}, "residual is 48; it must be a multiple of group = 32"),
        ({"residual": 0}, "residual is 0"),
        ({"group": 8, "residual": 8}, "residual is 8; it must be a multiple of group = 8 and of the 16 codes"),
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Kivi(**knobs)


def test_a_head_dimension_that_fills_no_group_is_refused() -> None:
    with pytest.raises(ValueError, match="head_dim is 48, expected a multiple of group = 32"):
        Kivi().codec(48)


@pytest.mark.parametrize(("bits", "number_bytes", "share"), [(2, 2, 0.1875), (4, 2, 0.3125), (2, 4, 0.125)])
def test_bytes_count_scales_and_minima(bits: int, number_bytes: int, share: float) -> None:
    # 32 numbers: 32 * bits / 8 bytes of codes, a scale and a minimum
    assert Kivi(bits).bytes_per_token(4096, number_bytes) == share * 4096


@pytest.mark.parametrize(
    ("tokens", "due", "packed"),
    [(0, (0, 0), 0), (31, (0, 0), 0), (32, (32, 0), 0), (63, (32, 31), 0), (64, (64, 32), 32), (100, (96, 68), 64)],
)
def test_what_is_rounded_and_packed(tokens: int, due: tuple[int, int], packed: int) -> None:
    kivi, codec = Kivi(), Kivi().codec(32)
    assert codec.due(tokens) == Due(*due)
    assert codec.packable(tokens) == kivi.packed_tokens(tokens) == packed
    assert packed <= min(due)


@pytest.fixture(params=[(2, 16), (4, 8), (2, 32)], ids=str)
def codec(request: pytest.FixtureRequest) -> Any:
    bits, group = request.param
    return Kivi(bits, group, 32).codec(32)


def numbers(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(3, 2, tokens, 32, generator=rng) for _ in range(2))
    return keys, values


@pytest.mark.parametrize("tokens", [32, 64, 37])
def test_packed_numbers_are_the_rounded_ones(codec: Any, tokens: int) -> None:
    keys, values = numbers(tokens)
    parts = codec.pack(keys, values)
    assert torch.equal(codec.keys(parts), codec.round_keys(keys))
    assert torch.equal(codec.values(parts), codec.round_values(values))
    layer = {name: part[1] for name, part in parts.items()}
    assert torch.equal(codec.keys(layer), codec.round_keys(keys)[1])
    if tokens % 32 == 0:
        held = sum(part.numel() * part.element_size() for part in parts.values())
        assert held == tokens * Kivi(codec.bits, codec.group, 32).bytes_per_token(3 * 2 * 2 * 32 * 4, 4)


@pytest.mark.parametrize("lengths", [(32, 32), (37, 32), (5, 6)])
def test_joining_rounds_nothing_again(codec: Any, lengths: tuple[int, int]) -> None:
    first, second = (codec.pack(*numbers(count, seed)) for seed, count in enumerate(lengths))
    joined = codec.join(first, second)
    for read in (codec.keys, codec.values):
        assert torch.equal(read(joined), torch.cat((read(first), read(second)), dim=2))


def test_taking_tokens_changes_none_of_them(codec: Any) -> None:
    parts = codec.pack(*numbers(64))
    rng = torch.Generator().manual_seed(4)
    for kept in (50, 20, 3):
        tokens = torch.rand(3, 2, codec.values(parts).shape[2], generator=rng).argsort(-1)[..., :kept].sort(-1).values
        tokens[0, 0, -1] = -1  # a padded column
        taken = codec.take(parts, tokens)
        assert sum(p.numel() for p in taken.values()) < sum(p.numel() for p in parts.values())
        index = tokens.clamp(min=0)[..., None].expand(-1, -1, -1, 32)
        for read in (codec.keys, codec.values):
            assert torch.equal(read(taken), read(parts).gather(2, index))
        parts = taken
    more = codec.pack(*numbers(32, 9))
    joined = codec.join(parts, more)
    assert torch.equal(codec.keys(joined), torch.cat((codec.keys(parts), codec.keys(more)), dim=2))


def test_scales_of_groups_without_members_are_given_up(codec: Any) -> None:
    parts = codec.pack(*numbers(64))
    last = torch.arange(64 - codec.group, 64).expand(3, 2, -1)
    assert codec.take(parts, last)["key_scales"].shape[2] == 1
    every = torch.arange(0, 64, codec.group).expand(3, 2, -1)
    assert codec.take(parts, every)["key_scales"].shape[2] == 64 // codec.group
