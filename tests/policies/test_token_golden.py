"""Decisions of the official implementations, to the index (float64)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvarena.framework.policy import CacheShape
from kvarena.policies.truncation.adakv import AdaKV
from kvarena.policies.truncation.h2o import H2O
from kvarena.policies.truncation.pyramidkv import PyramidKV
from kvarena.policies.truncation.snapkv import SnapKV
from kvarena.policies.truncation.streaming_llm import StreamingLLM
from kvarena.policies.truncation.tova import TOVA

sys.path.insert(0, str(Path(__file__).parent))
from token_cache import Kept, TokenCache, full_attention, prompt_and_replies, random_logits

STREAM = prompt_and_replies(6, 14)  # positions 0-5 at once, then one token after another up to 19


def stream(slope: float = 0.0) -> Tensor:
    """[1, 2, 20, 20]: 2 sin(0.7 q + 1.3 p + 0.9 h + 0.05 q p) + slope p."""
    head = torch.arange(2, dtype=torch.float64).view(2, 1, 1)
    query = torch.arange(20, dtype=torch.float64).view(1, 20, 1)
    key = torch.arange(20, dtype=torch.float64).view(1, 1, 20)
    logits = 2 * torch.sin(0.7 * query + 1.3 * key + 0.9 * head + 0.05 * query * key) + slope * key
    return logits.unsqueeze(0)


def after(policy: H2O | TOVA | StreamingLLM, shuffle: int | None) -> dict[int, Kept]:
    """What is kept, by the newest token."""
    cache = TokenCache(policy, stream(), 2, shuffle=shuffle)
    return dict(zip(range(5, 20), cache.run(STREAM), strict=True))


@pytest.mark.parametrize("shuffle", [None, 3])
def test_h2o_real_drop(shuffle: int | None) -> None:
    kept = after(H2O(budget_ratio=None, heavy=3, recent=4), shuffle)
    assert kept[7] == [[[0, 1, 3, 4, 5, 6, 7], [0, 2, 3, 4, 5, 6, 7]]]
    assert kept[19] == [[[0, 1, 3, 16, 17, 18, 19], [0, 2, 3, 16, 17, 18, 19]]]
    for newest in range(8, 20):
        recent = list(range(newest - 3, newest + 1))
        assert kept[newest] == [[[0, 1, 3, *recent], [0, 2, 3, *recent]]]


def test_h2o_takes_the_same_budget_as_one_number() -> None:
    assert after(H2O(budget_tokens=7, budget_ratio=None), None) == after(H2O(budget_ratio=None, heavy=3, recent=4), 1)


TOVA_KEPT = {
    7: [0, 1, 2, 3, 4, 5, 6],
    8: [0, 1, 2, 4, 5, 6, 8],
    10: [0, 1, 4, 5, 8, 9, 10],
    13: [0, 1, 8, 9, 10, 12, 13],
    16: [1, 8, 10, 12, 14, 15, 16],
    19: [1, 8, 12, 15, 17, 18, 19],
}


@pytest.mark.parametrize("shuffle", [None, 3])
def test_tova(shuffle: int | None) -> None:
    kept = after(TOVA(budget_tokens=7, budget_ratio=None), shuffle)
    assert {newest: kept[newest] for newest in TOVA_KEPT} == {n: [[p, p]] for n, p in TOVA_KEPT.items()}


def test_tova_may_protect_the_newest() -> None:
    kept = after(TOVA(budget_tokens=7, budget_ratio=None, protects_newest=True), None)
    assert all(newest in plane for newest, planes in kept.items() for plane in planes[0])


def test_streaming_llm() -> None:
    for policy in (
        StreamingLLM(start=2, recent=5, budget_tokens=None),
        StreamingLLM(start=2, budget_tokens=7),
    ):
        kept = after(policy, 5)
        assert kept[19] == [[[0, 1, 15, 16, 17, 18, 19]] * 2]
        assert kept[6] == [[[0, 1, 2, 3, 4, 5, 6]] * 2]


def test_streaming_llm_making_room_is_a_smaller_budget() -> None:
    room = StreamingLLM(start=2, recent=5 - 2, budget_tokens=None)
    assert TokenCache(room, stream(), 2).run([(7, "prompt")]) == [[[[0, 1, 4, 5, 6]] * 2]]


def prefill() -> Tensor:
    """[1, 2, 40, 40]: the golden prompt's logits."""
    head = torch.arange(2, dtype=torch.float64).view(2, 1, 1)
    token = torch.arange(1, 41, dtype=torch.float64).view(1, 40, 1)
    channel = torch.arange(4, dtype=torch.float64).view(1, 1, 4)
    query = torch.sin(0.37 * token * (channel + 1) + 0.5 * head)
    key = torch.cos(0.23 * token * (channel + 2) + 0.3 * head)
    return (query @ key.transpose(1, 2) / 2).unsqueeze(0)


def snapkv(**knobs: object) -> SnapKV:
    given = {"budget_tokens": 12, "budget_ratio": None, "window": 4, "kernel": 3, **knobs}
    return SnapKV(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", [None, 7, 39])
def test_snapkv(chunk: int | None) -> None:
    """The last chunk may have fewer queries than the window: 5 and 1 here."""
    cache = TokenCache(snapkv(), prefill(), 2, shuffle=1)
    chosen = [sorted([12, 13, 14, 11, 15, 1, 28, 24]), sorted([12, 11, 13, 10, 23, 14, 22, 24])]
    assert cache.run(prompt_and_replies(40, 0, chunk))[-1] == [[[*plane, 36, 37, 38, 39] for plane in chosen]]
    assert not cache.state, "what the prompt's queries looked at is of no use while decoding"


@pytest.mark.parametrize(("budget", "total", "first", "last"), [(128, 4272, 242, 25), (2048, 65552, 3986, 111)])
def test_pyramidkv_sizes(budget: int, total: int, first: int, last: int) -> None:
    policy = PyramidKV(budget_tokens=budget, budget_ratio=None, window=8)
    sizes = policy.layer_tokens(32, budget, 8000)
    assert (sum(sizes), sizes[0], sizes[-1]) == (total, first, last)
    policy.bind(CacheShape(32, 32, 8, 512))
    assert policy.kept_tokens(8000, 8000, "prompt") == total / 32


def test_pyramidkv_keeps_so_many() -> None:
    policy = PyramidKV(budget_tokens=64, budget_ratio=None, window=8)
    kept = TokenCache(policy, random_logits(0, 4, 4, 200), 2).run([(200, "prompt")])
    assert [[len(plane) for plane in layer] for layer in kept[0]] == [[n, n] for n in (118, 82, 46, 10)]
    assert policy.layer_tokens(4, 64, 111) == [64] * 4
    assert policy.layer_tokens(4, 64, 112) == [112, 80, 48, 16]  # the first layer can hold no more than the prompt
    assert policy.layer_tokens(1, 64, 200) == [64]


def adakv(floor: float) -> AdaKV:
    return AdaKV(budget_tokens=12, budget_ratio=None, window=4, kernel=3, pooling="avg", floor_alpha=floor)


def chosen(policy: SnapKV) -> list[list[int]]:
    """What stays of the golden prompt beside the window, by head."""
    kept = TokenCache(policy, prefill(), 2, shuffle=1).run([(40, "prompt")])[0]
    assert all(plane[-4:] == [36, 37, 38, 39] for plane in kept[0])
    return [plane[:-4] for plane in kept[0]]


def pooled_scores() -> Tensor:
    """[2, 36]: by the formula, from the rows of the last four queries."""
    rows = full_attention(prefill())[0, :, -4:, :36].mean(dim=1)
    padded = torch.nn.functional.pad(rows, (1, 1))
    return (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3


def test_adakv_sizes() -> None:
    """The official code's figure: two heads, 8 each, floor 0.2: 7 + 8."""
    assert sorted(len(plane) for plane in chosen(adakv(0.2))) == [7, 8]


def test_adakv_with_the_whole_floor_is_snapkv() -> None:
    assert chosen(adakv(1.0)) == chosen(snapkv())


def test_adakv_without_a_floor_takes_the_highest_of_all_heads() -> None:
    best = pooled_scores().flatten().argsort(descending=True)[:16]
    expected = [sorted((best[best // 36 == head] % 36).tolist()) for head in (0, 1)]
    assert chosen(adakv(0.0)) == expected
    assert len(expected[0]) != len(expected[1])
