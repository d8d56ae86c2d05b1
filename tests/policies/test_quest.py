"""Quest chooses the pages whose bounds are highest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kvarena.framework.choices import check_choices
from kvarena.framework.policy import Compression
from kvarena.framework.schema import ConfigError
from kvarena.policies.compression.kivi import Kivi
from kvarena.policies.compression.none import NoCompression
from kvarena.policies.truncation.quest import Quest


def bounds(pages: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Query [4, 8], low and high [pages, 2, 8]."""
    rng = torch.Generator().manual_seed(seed)
    ends = torch.randn(2, pages, 2, 8, generator=rng)
    return torch.randn(4, 8, generator=rng), ends.amin(0), ends.amax(0)


@pytest.mark.parametrize(("budget", "count"), [(16, 3), (48, 3), (70, 4), (128, 8)])
def test_the_pages_with_the_highest_bounds(budget: int, count: int) -> None:
    query, low, high = bounds(20)
    chosen = Quest(budget, None).pages(2, query, low, high, 310, 16)
    assert chosen is not None
    assert chosen.shape == (4, count)
    for head in range(4):
        scores = torch.maximum(query[head] * low[:, head // 2], query[head] * high[:, head // 2]).sum(-1)
        assert chosen[head].tolist() == sorted(scores.topk(count).indices.tolist())


def test_a_share_of_the_context() -> None:
    query, low, high = bounds(20)
    chosen = Quest(None, 0.5).pages(2, query, low, high, 310, 16)
    assert chosen is not None
    assert chosen.shape == (4, 155 // 16)


@pytest.mark.parametrize(
    ("quest", "layer", "pages", "tokens"),
    [
        (Quest(64, None), 1, 20, 310),  # a dense layer
        (Quest(64, None), 5, 3, 48),  # never fewer than three pages
        (Quest(70, None), 5, 5, 70),  # the whole context, and a page that is not full
        (Quest(None, 1.0), 5, 20, 310),
        (Quest(80, None), 5, 5, 78),
    ],
)
def test_everything(quest: Quest, layer: int, pages: int, tokens: int) -> None:
    assert quest.pages(layer, *bounds(pages), tokens, 16) is None


def test_of_equal_bounds_the_older_page_is_taken() -> None:
    query, low, high = torch.ones(4, 8), torch.zeros(9, 2, 8), torch.ones(9, 2, 8)
    chosen = Quest(64, None, 0).pages(0, query, low, high, 140, 16)
    assert chosen is not None
    assert chosen.tolist() == [[0, 1, 2, 3]] * 4


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"budget_tokens": 64}, "exactly one of the two must be given"),
        ({"budget_ratio": None}, "exactly one of the two must be given"),
        ({"budget_tokens": 0, "budget_ratio": None}, "budget_tokens is 0; it must be at least 1"),
        ({"budget_ratio": 1.5}, "budget_ratio is 1.5; it must be more than 0 and at most 1"),
        ({"dense_layers": -1}, "dense_layers is -1; it must be at least 0"),
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quest(**knobs)


@pytest.mark.parametrize(
    ("compression", "decoupled", "message"),
    [
        (Kivi(), False, "it needs compression=none, not kivi"),
        (NoCompression(), True, "it needs backend.decoupled=false"),
    ],
)
def test_what_it_does_not_go_with(compression: Compression, decoupled: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^truncation=quest .*{message}"):
        check_choices(Quest(), compression, backend="torch", decoupled=decoupled, replays=False)
