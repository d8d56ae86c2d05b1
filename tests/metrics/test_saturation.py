"""A queue is called saturated if it grows for as long as requests arrive."""

from __future__ import annotations

import numpy as np
import pytest

from kvarena.framework.metrics import RequestRecord, summarize


def _served_in_order(load: float, seed: int, count: int, all_at_once: bool = False) -> list[RequestRecord]:
    """A single server with exponential gaps and services of mean 1 / load and 1."""
    rng = np.random.default_rng(seed)
    arrivals = np.zeros(count) if all_at_once else np.cumsum(rng.exponential(1 / load, count))
    records, free_s = [], 0.0
    for i, (arrival_s, service_s) in enumerate(zip(arrivals, rng.exponential(1.0, count), strict=True)):
        start_s = max(float(arrival_s), free_s)
        free_s = start_s + float(service_s)
        records.append(RequestRecord(i, i, 0, float(arrival_s), 1, 0, 0, 1, start_s, free_s, free_s))
    return records


def _saturated(records: list[RequestRecord]) -> bool:
    return bool(summarize(records, [], [], {})["run"]["saturated"])


@pytest.mark.parametrize("seed", range(5))
def test_below_capacity_it_is_not(seed: int) -> None:
    assert not _saturated(_served_in_order(0.7, seed, 1000))


@pytest.mark.parametrize("seed", range(5))
def test_above_capacity_it_is(seed: int) -> None:
    assert _saturated(_served_in_order(1.5, seed, 1000))


def test_a_batch_that_arrives_at_once_is_not() -> None:
    assert not _saturated(_served_in_order(1.0, 0, 500, all_at_once=True))


def test_a_handful_of_requests_says_nothing() -> None:
    assert not _saturated(_served_in_order(3.0, 0, 19))
    assert _saturated(_served_in_order(3.0, 0, 60))
