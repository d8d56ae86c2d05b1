"""D equals numpy's percentiles of the expanded values, whatever the weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvarena.framework.metrics.distribution import QUANTILES, distribution, gap_distribution
from kvarena.framework.metrics.gaps import TokenGaps

_GAPS = st.lists(st.tuples(st.floats(0, 100), st.integers(1, 20)), min_size=1, max_size=40)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_quantiles_are_numpys(values: list[float]) -> None:
    found = distribution(values)
    for name, q in QUANTILES.items():
        assert found[name] == pytest.approx(float(np.quantile(values, q)), rel=1e-12, abs=1e-12)
    assert (found["count"], found["max"]) == (len(values), max(values))


@given(_GAPS)
def test_weights_stand_for_copies(gaps: list[tuple[float, int]]) -> None:
    kept, time_s = TokenGaps(), 0.0
    times = [(0.0, 1)]
    for gap_s, tokens in gaps:
        time_s += gap_s * tokens
        times.append((time_s, tokens))
    kept.add(0, times, 1 + sum(tokens for _, tokens in gaps))
    assert kept.mistimed == []
    steps = np.diff([t for t, _ in times]) / [n for _, n in gaps]
    expanded = np.repeat(steps, [n for _, n in gaps])
    found, expected = gap_distribution(kept), distribution(expanded)
    assert found["count"] == len(expanded)
    for name in ("mean", *QUANTILES, "max"):
        assert found[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12)


def test_memory_is_bounded_and_the_error_small() -> None:
    exact, bounded = TokenGaps(), TokenGaps(max_pairs=5000)
    rng = np.random.default_rng(0)
    for _ in range(60):
        times = np.cumsum(rng.lognormal(-4, 1, 1000))
        pairs = [(float(t), 1) for t in times]
        exact.add(0, pairs, 1000)
        bounded.add(0, pairs, 1000)
    assert len(bounded.weighted()[0]) < 30000 < len(exact.weighted()[0])
    found, expected = gap_distribution(bounded), gap_distribution(exact)
    assert found["count"] == expected["count"]
    assert (found["mean"], found["max"]) == (expected["mean"], expected["max"])
    for name in QUANTILES:
        assert found[name] == pytest.approx(expected[name], rel=2e-4)


def test_warmup_gaps_are_counted_but_not_kept() -> None:
    gaps = TokenGaps()
    gaps.add(7, [(1.0, 1), (2.0, 3)], 5, keep=False)
    assert gaps.mistimed == ["request 7 has times for 4 of 5 tokens"]
    assert gap_distribution(gaps)["count"] == 0
