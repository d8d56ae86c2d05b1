"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from kvarena.framework.quality.intervals import Bootstrap


def test_an_interval_is_as_wide_as_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = Bootstrap().interval(values)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert (found.mean, found.n) == (pytest.approx(values.mean()), 400)
    half = 1.96 * values.std() / 20
    assert found.mean - found.low == pytest.approx(half, rel=0.15)
    assert found.high - found.mean == pytest.approx(half, rel=0.15)


def test_equal_values_leave_no_room_and_one_value_tells_nothing() -> None:
    draws = Bootstrap()
    assert draws.interval([0.5] * 7) == draws.interval(np.full(7, 0.5))
    assert [getattr(draws.interval([1.0, 1.0]), name) for name in ("low", "high")] == [1.0, 1.0]
    one = draws.interval([2.0])
    assert one is not None
    assert (one.mean, one.low, one.high, one.n) == (2.0, None, None, 1)
    assert draws.interval([]) is None
    assert draws.interval([float("nan")]) is None


def test_weights_are_resampled_with_their_values() -> None:
    found = Bootstrap().interval([1.0, 3.0, float("nan")], [3.0, 1.0, 5.0])
    assert found is not None
    assert (found.mean, found.n) == (1.5, 2)
    assert (found.low, found.high) == (1.0, 3.0)


def test_the_same_values_have_the_same_interval() -> None:
    values = np.random.default_rng(1).random(30)
    assert Bootstrap().interval(values) == Bootstrap().interval(values)


def test_pairs_tell_what_the_spread_hides() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(0, 10, 50)
    draws = Bootstrap()
    assert draws.differs(base + 0.5 + rng.normal(0, 0.1, 50), base) is True
    assert draws.differs(base, rng.permutation(base)) is False
    assert draws.differs([1.0], [2.0]) is None
