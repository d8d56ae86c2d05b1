"""Token-level policies against plain lists, written from the papers' descriptions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvarena.framework.policy import Stage, highest_scores
from kvarena.policies.truncation.adakv import AdaKV
from kvarena.policies.truncation.buzz import Buzz
from kvarena.policies.truncation.corm import CORM
from kvarena.policies.truncation.future import Future
from kvarena.policies.truncation.h2o import H2O
from kvarena.policies.truncation.keydiff import KeyDiff
from kvarena.policies.truncation.knorm import KNorm
from kvarena.policies.truncation.random import Random
from kvarena.policies.truncation.snapkv import SnapKV
from kvarena.policies.truncation.tova import TOVA
from kvarena.policies.truncation.window import Window

sys.path.insert(0, str(Path(__file__).parent))
from token_cache import TokenCache, full_attention, prompt_and_replies, random_keys, random_logits

Blocks = Sequence[tuple[int, Stage]]
TWO_TURNS: Blocks = [*prompt_and_replies(17, 9, 6), *prompt_and_replies(8, 6)]
LENGTH = 40


class PlainHead:
    """One head: a list of cached positions, and what each was given so far."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits, self.cached, self.given, self.tokens = logits, list[int](), dict[int, float](), 0
        self.rows: list[dict[int, float]] = []

    def step(self, queries: int, decay: float = 1.0) -> None:
        self.given = {p: s * decay**queries for p, s in self.given.items()}
        self.cached += range(self.tokens, self.tokens + queries)
        self.given.update(dict.fromkeys(range(self.tokens, self.tokens + queries), 0.0))
        for query in range(self.tokens, self.tokens + queries):
            seen = [p for p in self.cached if p <= query]
            weights = np.exp(self.logits[query, seen] - self.logits[query, seen].max())
            row = dict(zip(seen, (weights / weights.sum()).tolist(), strict=True))
            self.rows.append(row)
            for p, share in row.items():
                self.given[p] += share
        self.tokens += queries

    def leave(self, kept: Sequence[int]) -> None:
        self.cached = sorted(kept)
        self.given = {p: self.given[p] for p in self.cached}


Cut = Callable[[PlainHead, Stage], Sequence[int]]


def plain(seed: int, blocks: Blocks, cut: Cut, decay: float = 1.0) -> list[list[list[list[int]]]]:
    """What ``cut`` leaves in each of 2 x 3 heads after each block; nothing is cut between chunks."""
    logits = random_logits(seed, 2, 3, LENGTH).numpy()
    heads = [[PlainHead(logits[layer, head]) for head in range(3)] for layer in range(2)]
    kept = []
    for queries, stage in blocks:
        for head in (head for layer in heads for head in layer):
            head.step(queries, decay)
            if stage != "chunk":
                head.leave(cut(head, stage))
        kept.append([[list(head.cached) for head in layer] for layer in heads])
    return kept


def heaviest(head: PlainHead, among: Sequence[int], count: int) -> list[int]:
    return sorted(among, key=lambda p: -head.given[p])[:count]


def real_drop(heavy: int, recent: int) -> Cut:
    def cut(head: PlainHead, stage: Stage) -> list[int]:
        if len(head.cached) <= heavy + recent:
            return head.cached
        edge = len(head.cached) - recent
        return heaviest(head, head.cached[:edge], heavy) + head.cached[edge:]

    return cut


def flexgen(heavy: int, recent: int) -> Cut:
    def cut(head: PlainHead, stage: Stage) -> list[int]:
        if stage == "prompt":
            edge = len(head.cached) - (recent - 1)
            return heaviest(head, head.cached[:edge], heavy) + head.cached[edge:]
        lowest = min(head.cached[: len(head.cached) - recent], key=lambda p: head.given[p])
        return [p for p in head.cached if p != lowest]

    return cut


def by_age(heavy: int, recent: int) -> Cut:
    def cut(head: PlainHead, stage: Stage) -> list[int]:
        edge = max(0, len(head.cached) - recent)
        rates = sorted(head.cached[:edge], key=lambda p: -head.given[p] / (head.tokens - p))
        return rates[: max(0, heavy)] + head.cached[edge:]

    return cut


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("heavy", "recent"), [(3, 4), (1, 7), (6, 1)])
@pytest.mark.parametrize(
    ("variant", "cut", "decay"),
    [
        ("real_drop", real_drop, 1.0),
        ("flexgen", flexgen, 1.0),
        ("decayed", real_drop, 0.8),
        ("age_normalised", by_age, 1.0),
    ],
)
def test_h2o(variant: str, cut: Callable[[int, int], Cut], decay: float, heavy: int, recent: int, seed: int) -> None:
    policy = H2O(budget_ratio=None, heavy=heavy, recent=recent, variant=variant, decay=0.8)  # type: ignore[arg-type]
    cache = TokenCache(policy, random_logits(seed, 2, 3, LENGTH), 3, shuffle=seed)
    assert cache.run(TWO_TURNS) == plain(seed, TWO_TURNS, cut(heavy, recent), decay)


def test_h2os_sums_are_the_queries_less_what_left_with_the_evicted() -> None:
    cache = TokenCache(H2O(budget_ratio=None, heavy=3, recent=4), random_logits(0, 2, 3, LENGTH), 3)
    gone = torch.zeros(2, 3, dtype=torch.float64)
    for queries, stage in TWO_TURNS:
        before = cache.state["attention"].sum(-1) if cache.state else torch.zeros(2, 3)
        cache.step(queries, stage)
        gone += before + queries - cache.state["attention"].sum(-1)
        torch.testing.assert_close(cache.state["attention"].sum(-1), cache.tokens - gone)
    assert (gone > 1).all()


def test_h2o_without_heavy_hitters_is_a_window() -> None:
    logits = random_logits(1, 2, 4, LENGTH)
    drop = TokenCache(H2O(budget_ratio=None, heavy=0, recent=6), logits, 2).run(TWO_TURNS)
    assert drop == TokenCache(Window(budget_tokens=6, budget_ratio=None), logits, 2).run(TWO_TURNS)
    assert drop[-1] == [[[34, 35, 36, 37, 38, 39]] * 2] * 2


def test_h2o_of_a_whole_prompt_is_the_top_of_the_dense_column_sums() -> None:
    logits = random_logits(2, 1, 4, LENGTH)
    sums = full_attention(logits)[0].sum(dim=1).view(2, 2, LENGTH)
    for group, together in (("mean", sums.mean(1)), ("sum", sums.sum(1)), ("max", sums.amax(1))):
        policy = H2O(budget_tokens=10, budget_ratio=None, recent=0, group=group)  # type: ignore[arg-type]
        kept = TokenCache(policy, logits, 2).run([(LENGTH, "prompt")])[0][0]
        assert kept == [sorted(head.argsort(descending=True)[:10].tolist()) for head in together]


def beehive(sink: int, window: int, stride: int, threshold: int) -> Cut:
    sampled: dict[int, int] = {}  # by head

    def cut(head: PlainHead, stage: Stage) -> list[int]:
        cached = head.cached
        middle = cached[sink : len(cached) - window] if len(cached) > sink + window else []
        if len(middle) <= threshold:
            return cached
        old, new = middle[: sampled.get(id(head), 0)], middle[sampled.get(id(head), 0) :]
        old = old[:: (stride + 1) // 2]
        cells = [new[i : i + stride] for i in range(0, len(new), stride)]
        fresh = [max(cell, key=lambda p: head.given[p]) for cell in cells]
        head.given.update(dict.fromkeys(cached[:sink] + old, 0.0))
        sampled[id(head)] = len(old) + len(fresh)
        return cached[:sink] + old + fresh + cached[len(cached) - window :]

    return cut


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("sink", "window", "stride", "threshold"), [(2, 3, 3, 4), (1, 2, 4, 7), (0, 1, 2, 9), (3, 4, 1, 3)]
)
def test_buzz(sink: int, window: int, stride: int, threshold: int, seed: int) -> None:
    policy = Buzz(sink=sink, window=window, stride=stride, budget_tokens=sink + window + threshold)
    blocks: Blocks = [*TWO_TURNS[:12], *prompt_and_replies(3, LENGTH - 29)]
    cache = TokenCache(policy, random_logits(seed, 2, 3, LENGTH), 3, shuffle=seed)
    kept = cache.run(blocks)
    assert kept == plain(seed, blocks, beehive(sink, window, stride, threshold))
    sizes = [len(planes[0][0]) for planes in kept]
    if stride > 1:
        assert any(later < earlier for earlier, later in pairwise(sizes)), "a saw-tooth"


def test_buzz_keeps_the_oldest_of_equals() -> None:
    logits = torch.zeros(1, 2, 20, 20, dtype=torch.float64)
    logits[..., 0] = 1000.0  # nobody looks at anything else
    policy = Buzz(sink=1, window=2, stride=4, budget_tokens=12)
    assert TokenCache(policy, logits, 2, shuffle=1).run([(20, "prompt")]) == [[[[0, 1, 5, 9, 13, 17, 18, 19]] * 2]]


def ring(window: int, recent: int, threshold: float = 1.0) -> Cut:
    def cut(head: PlainHead, stage: Stage) -> list[int]:
        last = list(enumerate(head.rows))[-window:]
        major = {p for query, row in last for p, share in row.items() if share * (query + 1) >= threshold}
        return [p for p in head.cached if p in major or p >= head.tokens - recent]

    return cut


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("window", "recent", "threshold"), [(4, 4, 1.0), (1, 0, 1.0), (9, 2, 0.3)])
def test_corm(window: int, recent: int, threshold: float, seed: int) -> None:
    policy = CORM(window=window, recent=recent, threshold=threshold)
    cache = TokenCache(policy, random_logits(seed, 2, 3, LENGTH), 3, shuffle=seed)
    assert cache.run(TWO_TURNS) == plain(seed, TWO_TURNS, ring(window, recent, threshold))


def test_corm_keeps_what_is_above_the_average() -> None:
    policy, logits = CORM(window=1, recent=0), random_logits(5, 1, 2, LENGTH)
    last = full_attention(logits)[0, :, -1]
    kept = TokenCache(policy, logits, 2).run([(LENGTH, "prompt")])
    assert kept[0][0] == [[p for p in range(LENGTH) if row[p] >= 1 / LENGTH] for row in last.tolist()]
    for tokens in (41, 47, 55, 61):  # float32: n times 1 / n may be less than 1
        even = torch.zeros(1, 2, tokens, tokens)
        assert TokenCache(policy, even, 2).run([(tokens, "prompt")])[-1] == [[list(range(tokens))] * 2]
    one = torch.zeros(1, 2, LENGTH, LENGTH)
    one[..., 3] = 100.0
    assert TokenCache(policy, one, 2).run([(LENGTH, "prompt")]) == [[[[3], [3]]]]


def test_corms_query_heads_speak_for_their_kv_head() -> None:
    logits = random_logits(6, 1, 4, LENGTH)
    apart = TokenCache(CORM(window=3, recent=2), logits, 4).run([(LENGTH, "prompt")])[0][0]
    together = TokenCache(CORM(window=3, recent=2), logits, 2).run([(LENGTH, "prompt")])[0][0]
    assert together == [sorted({*apart[0], *apart[1]}), sorted({*apart[2], *apart[3]})]


def looked_at(head: PlainHead, window: int, kernel: int, pooling: str) -> dict[int, float]:
    """Pooled probabilities that the last ``window`` queries give each cached token before them."""
    before = head.cached[:-window]
    sums = [sum(row.get(p, 0.0) for row in head.rows[-window:]) for p in before]
    edge = [0.0] * (kernel // 2)
    near = [[*edge, *sums, *edge][i : i + kernel] for i in range(len(sums))]
    return dict(zip(before, (max(n) if pooling == "max" else sum(n) / kernel for n in near), strict=True))


def shared_out(heads: list[PlainHead], spare: int, window: int, floor: float, pooling: str) -> None:
    """Ada-KV: each head keeps its own best, as many as it has among the best of all, drawn towards ``spare``."""
    scores = [looked_at(head, window, 3, pooling) for head in heads]
    best = sorted(((-score, p, h) for h, of in enumerate(scores) for p, score in of.items()))[: spare * len(heads)]
    for h, (head, of) in enumerate(zip(heads, scores, strict=True)):
        size = round(sum(owner == h for _, _, owner in best) * (1 - floor) + int(spare * floor))
        head.leave([*sorted(of, key=lambda p: (-of[p], p))[:size], *head.cached[-window:]])


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("floor", [0.0, 0.25, 0.5, 1.0])
def test_adakv_and_snapkv(floor: float, pooling: str) -> None:
    """In the second turn heads hold different numbers of tokens already."""
    logits = random_logits(4, 2, 3, LENGTH)
    layers = [[PlainHead(head.numpy()) for head in layer] for layer in logits]
    knobs: dict[str, object] = {"budget_tokens": 9, "budget_ratio": None, "window": 4, "kernel": 3, "pooling": pooling}
    cache = TokenCache(AdaKV(**knobs, floor_alpha=floor), logits, 3, shuffle=1)  # type: ignore[arg-type]
    snap = TokenCache(SnapKV(**knobs), logits, 3)  # type: ignore[arg-type]
    for queries, stage in TWO_TURNS:
        for heads in layers:
            for head in heads:
                head.step(queries)
            if stage == "prompt":
                shared_out(heads, 9 - 4, 4, floor, pooling)
        kept = cache.step(queries, stage)
        assert kept == [[head.cached for head in heads] for heads in layers]
        assert (snap.step(queries, stage) == kept) == (floor == 1.0 or stage == "chunk")


def test_tova_averages_all_heads_of_a_layer() -> None:
    logits = random_logits(7, 2, 4, LENGTH)
    mean = full_attention(logits)[:, :, -1].mean(dim=1)
    kept = TokenCache(TOVA(budget_tokens=9, budget_ratio=None), logits, 2).run([(LENGTH, "prompt")])[0]
    assert kept == [[sorted(row.argsort(descending=True)[:9].tolist())] * 2 for row in mean]


def test_key_norms_and_key_directions() -> None:
    keys, logits = random_keys(0, 2, 2, LENGTH), random_logits(0, 2, 4, LENGTH)
    units = keys / keys.norm(dim=-1, keepdim=True)
    mean = units.mean(dim=2, keepdim=True)
    likeness = (units * mean / mean.norm(dim=-1, keepdim=True)).sum(-1)
    for policy, low in ((KNorm(), keys.norm(dim=-1)), (KeyDiff(), likeness)):
        kept = TokenCache(policy, logits, 2, keys).run([(LENGTH, "prompt")])[0]
        assert kept == [[sorted(plane.argsort()[:8].tolist()) for plane in layer] for layer in low]


def test_the_oracle_knows_what_comes() -> None:
    logits = random_logits(8, 1, 4, LENGTH)
    future = full_attention(logits)[0, :, 25:].sum(dim=1).view(2, 2, LENGTH).mean(dim=1)[:, :25]
    kept = TokenCache(Future(budget_tokens=6, budget_ratio=None), logits, 2).run([(25, "prompt")])[0][0]
    assert kept == [sorted(head.argsort(descending=True)[:6].tolist()) for head in future]
    assert Future.oracle


def test_lots_are_even_over_tokens_and_differ_between_planes_and_seeds() -> None:
    drawn = np.zeros(200)
    seen = set()
    for seed in range(20):
        cache = TokenCache(Random(budget_tokens=50, budget_ratio=None, seed=seed), torch.zeros(4, 2, 200, 200), 2)
        for plane in (plane for layer in cache.run([(150, "prompt"), *[(10, "prompt")] * 5])[-1] for plane in layer):
            drawn[plane] += 1
            seen.add(tuple(plane))
    assert len(seen) == 160, "each plane of each seed draws for itself"
    expected = 160 * 50 / 200
    assert abs(drawn[:100].sum() / 100 - expected) < 2 and abs(drawn[190:].mean() - expected) < 8
    assert 100 < ((drawn - expected) ** 2 / (expected * 0.75)).sum() < 300  # chi-square, 200 tokens


@given(data=st.data(), n=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_the_highest_stay_and_of_equals_the_oldest(data: st.DataObject, n: int, seed: int) -> None:
    """Planes of different length and size, ties, protected tokens."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(2, 3, n, generator=generator).argsort(-1) * 3
    empty = torch.rand(2, 3, n, generator=generator) < 0.3
    positions[empty] = -1
    score = torch.randint(0, 4, (2, 3, n), generator=generator).double()
    protected = torch.rand(2, 3, n, generator=generator) < 0.2
    sizes = torch.randint(0, n + 2, (2, 3), generator=generator)
    given_sizes = data.draw(st.sampled_from(["each", "layer", "one", "one fewer"]))
    limit = {"each": sizes, "layer": sizes[:, :1], "one": int(sizes[0, 0]), "one fewer": n - 1}[given_sizes]
    keep = highest_scores(score, limit, positions, protected)
    for layer in range(2):
        for head in range(3):
            plane, size = (
                positions[layer, head].tolist(),
                limit if isinstance(limit, int) else int(limit.expand(2, 3)[layer, head]),
            )
            slots = [slot for slot in range(n) if plane[slot] >= 0]
            safe = {slot for slot in slots if protected[layer, head, slot]}
            rest = sorted(
                (slot for slot in slots if slot not in safe),
                key=lambda slot: (-score[layer, head, slot].item(), plane[slot]),
            )
            expected = safe | set(rest[: max(0, size - len(safe))])
            assert {slot for slot in range(n) if keep[layer, head, slot]} == expected
