"""Expected attention, against its formula spelled out and against draws of the queries that it expects."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kvarena.framework.policy import CacheShape
from kvarena.policies.truncation.expected_attention import ExpectedAttention

sys.path.insert(0, str(Path(__file__).parent))
from token_cache import TokenCache, prompt_and_replies, random_keys, random_logits, values_of

LENGTH, WIDTH = 40, 8
GIVEN: dict[str, Any] = {"budget_tokens": 10, "budget_ratio": None}


class Turning:
    """Rotates pairs of channels (i, i + half); ``turned`` by complex numbers, one angle each."""

    def __init__(self, width: int = WIDTH) -> None:
        self.speed = 0.9 ** torch.arange(width // 2, dtype=torch.float64)

    def turned(self, vectors: Tensor, positions: Tensor) -> Tensor:
        return self._times(vectors, torch.polar(torch.ones(()).double(), positions[:, None] * self.speed))

    def averaged(self, vectors: Tensor, first: int, count: int) -> Tensor:
        at = torch.arange(first, first + count)[:, None]
        return self._times(vectors, torch.polar(torch.ones(()).double(), at * self.speed).mean(dim=0))

    @staticmethod
    def _times(vectors: Tensor, factor: Tensor) -> Tensor:
        low, high = vectors.double().chunk(2, dim=-1)
        turned = torch.complex(low, high) * factor
        return torch.cat((turned.real, turned.imag), dim=-1)

    def matrix(self, first: int, count: int) -> Tensor:
        """The average rotation, [WIDTH, WIDTH], position by position."""
        half, total = len(self.speed), torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
        for place in range(first, first + count):
            for i in range(half):
                angle = place * float(self.speed[i])
                total[i, i] += math.cos(angle)
                total[i + half, i + half] += math.cos(angle)
                total[i, i + half] -= math.sin(angle)
                total[i + half, i] += math.sin(angle)
        return total / count


def bound(rotation: Turning | None, **knobs: Any) -> ExpectedAttention:
    policy = ExpectedAttention(**{**GIVEN, **knobs})
    policy.bind(CacheShape(2, 4, 2, 64, rotation))
    return policy


def random_queries(seed: int, heads: int = 4) -> Tensor:
    """[2, heads, LENGTH, WIDTH], of a mean and a spread of each head's own."""
    draw = torch.Generator().manual_seed(seed)
    mean, mix = (torch.randn(2, heads, *s, WIDTH, generator=draw, dtype=torch.float64) for s in ((1,), (WIDTH,)))
    return mean + 0.5 * torch.randn(2, heads, LENGTH, WIDTH, generator=draw, dtype=torch.float64) @ mix


def by_formula(queries: Tensor, keys: Tensor, values: Tensor, turn: Tensor, sink: int, epsilon: float) -> list[float]:
    """Scores of the keys [n, D] behind the sink, of one KV head and its query heads [g, T, D]."""
    total = torch.zeros(len(keys) - sink, dtype=torch.float64)
    for head in queries:
        rows = head[sink:] if len(head) > sink else head
        mean = rows.mean(dim=0)
        covariance = sum(torch.outer(row - mean, row - mean) for row in rows) / len(rows)
        mean, covariance = turn @ mean, turn @ covariance @ turn.T
        logits = [float(k @ mean) / WIDTH**0.5 + float(k @ covariance @ k) / (2 * WIDTH) for k in keys[sink:]]
        total += torch.tensor(logits, dtype=torch.float64).softmax(dim=0)
    return ((total / len(queries) + epsilon) * values[sink:].norm(dim=-1)).tolist()


@pytest.mark.parametrize(("sink", "epsilon", "future"), [(4, 0.0, 512), (0, 0.0, 3), (2, 0.02, 30)])
@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("chunk", [None, 7])
def test_the_formula(sink: int, epsilon: float, future: int, rotated: bool, chunk: int | None) -> None:
    rotation = Turning() if rotated else None
    keys, queries = random_keys(0, 2, 2, LENGTH, WIDTH), random_queries(1)
    policy = bound(rotation, sink=sink, epsilon=epsilon, future_positions=future)
    cache = TokenCache(policy, random_logits(0, 2, 4, LENGTH), 2, keys, shuffle=2, queries=queries)
    blocks = prompt_and_replies(30, 3, chunk)
    kept = cache.run(blocks)[-1]
    turn = torch.eye(WIDTH, dtype=torch.float64) if rotation is None else rotation.matrix(30, future)
    for layer in range(2):
        for plane in range(2):
            asking, held = queries[layer, 2 * plane : 2 * plane + 2, :30], keys[layer, plane, :30]
            scores = by_formula(asking, held, values_of(held), turn, sink, epsilon)
            best = sorted(range(len(scores)), key=lambda i: -scores[i])[: 10 - sink]
            assert kept[layer][plane] == sorted([*range(sink), *(i + sink for i in best), 30, 31, 32])
    assert not cache.notes, "a turn's queries are forgotten with it"


def test_the_next_turn_is_judged_by_its_own_queries() -> None:
    keys, queries, logits = random_keys(3, 2, 2, LENGTH, WIDTH), random_queries(4), random_logits(3, 2, 4, LENGTH)
    runs = []
    for changed in (slice(0, 0), slice(5, 20), slice(20, LENGTH)):
        other = queries.clone()
        other[:, :, changed] = -queries[:, :, changed]
        first = bound(Turning(), budget_tokens=20, future_positions=2)
        cache = TokenCache(first, logits, 2, keys, queries=other)
        runs.append(cache.run([(20, "prompt"), (10, "prompt")])[-1])
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("blocks", [[(3, "prompt")], [(2, "chunk"), (1, "prompt")], [(4, "chunk"), (8, "prompt")]])
def test_short_prompts(blocks: list[Any]) -> None:
    """Only sink tokens so far; the first others come with the next block."""
    length = sum(queries for queries, _ in blocks)
    keys, queries = random_keys(5, 2, 2, LENGTH, WIDTH), random_queries(6)
    cache = TokenCache(bound(None, budget_tokens=6), random_logits(5, 2, 4, LENGTH), 2, keys, queries=queries)
    kept = cache.run(blocks)[-1]
    if length <= 6:
        assert kept == [[list(range(length))] * 2] * 2
        return
    held = keys[1, 0, :length]
    scores = by_formula(queries[1, :2, :length], held, values_of(held), torch.eye(WIDTH).double(), 4, 0.0)
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[:2]
    assert kept[1][0] == sorted([0, 1, 2, 3, *(i + 4 for i in best)])


def test_places_in_the_cache() -> None:
    """The same as true places while all is there: keys are rotated where they are read."""
    queries, keys = random_queries(7), random_keys(7, 2, 2, LENGTH, WIDTH)
    turning, logits = Turning(), random_logits(7, 2, 4, LENGTH)
    rotated = turning.turned(keys, torch.arange(LENGTH))
    true = TokenCache(bound(turning, sink=1), logits, 2, rotated, queries=queries)
    by_place = TokenCache(bound(turning, positions="cache", sink=1), logits, 2, keys, queries=queries)
    scores = []
    for cache in (true, by_place):
        cache.positions = torch.arange(LENGTH).expand(2, 2, LENGTH)
        cache.tokens = LENGTH
        view = cache._view(LENGTH, "prompt")
        view.values = lambda: torch.ones(2, 2, LENGTH, WIDTH)  # type: ignore[method-assign]
        cache.policy.observe(view)
        scores.append(cache.policy.score(view))  # type: ignore[attr-defined]
    torch.testing.assert_close(*scores)


def test_what_is_expected_is_the_mean_over_gaussian_queries() -> None:
    """Monte Carlo: the mean of exp(q.k / sqrt(D)) over draws of q, against the score before values count."""
    policy, queries = bound(None, sink=0, group="mean"), random_queries(8, heads=2)
    keys = random_keys(8, 2, 2, 12, WIDTH) * 0.4
    cache = TokenCache(policy, random_logits(8, 2, 2, LENGTH), 2, keys, queries=queries)
    cache.positions, cache.tokens = torch.arange(12).expand(2, 2, 12), 12
    view = cache._view(12, "prompt")
    policy.observe(view)
    share = policy.score(view) / values_of(keys).norm(dim=-1)
    draw = torch.Generator().manual_seed(0)
    for layer in range(2):
        for head in range(2):
            asked = queries[layer, head, :12]
            covariance = torch.cov(asked.T, correction=0)
            root = torch.linalg.eigh(covariance)
            half = root.eigenvectors * root.eigenvalues.clamp(min=0).sqrt()
            drawn = asked.mean(0) + torch.randn(400_000, WIDTH, generator=draw, dtype=torch.float64) @ half.T
            given = (drawn @ keys[layer, head].T / WIDTH**0.5).exp().mean(dim=0)
            torch.testing.assert_close(share[layer, head].double(), given / given.sum(), rtol=0.05, atol=2e-3)
