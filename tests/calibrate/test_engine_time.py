"""The engine's own time, from what passes between iterations."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from kvarena.framework.calibrate.engine_time import Between, Watched, WatchedLinks, fit_engine_time
from kvarena.framework.execution.contract import Batch, Segment
from kvarena.framework.workloads.tokens import IdLog


def between(parts: tuple[float, float, float], count: int = 400, noise: float = 0.0) -> list[Between]:
    random = np.random.default_rng(0)
    sizes, prompts = random.integers(1, 9, count).tolist(), random.integers(0, 3, count).tolist()
    factors = (1 + noise * random.standard_normal(count)).tolist()
    iteration_s, sequence_s, prompt_s = parts
    return [
        Between((iteration_s + sequence_s * n + prompt_s * p / 2) * f, n, p / 2)
        for n, p, f in zip(sizes, prompts, factors, strict=True)
    ]


def test_the_parts_are_found_through_noise() -> None:
    found = fit_engine_time(between((2e-4, 5e-5, 1e-3), noise=0.1))
    assert (found.iteration_s, found.sequence_s, found.prompt_s) == pytest.approx((2e-4, 5e-5, 1e-3), rel=0.15)
    assert 0.02 < found.spread < 0.15


def test_the_sum_is_met_and_no_part_is_negative() -> None:
    falling = [Between(1e-3 / n, n, 0) for n in (1, 2, 4, 8) for _ in range(50)]
    found = fit_engine_time(falling)
    assert found.sequence_s == 0.0
    assert found.iteration_s == pytest.approx(np.mean([each.seconds for each in falling]), rel=0.02)
    steep = [Between(max(1e-6, 1e-4 * (n - 2)), n, 0) for n in (1, 2, 4, 8) for _ in range(50)]
    assert min(fit_engine_time(steep).iteration_s, fit_engine_time(steep).prompt_s) >= 0.0


def test_a_rare_wait_is_not_the_engine() -> None:
    found = fit_engine_time([*between((2e-4, 5e-5, 1e-3)), Between(3.0, 1, 0)])
    assert found.iteration_s == pytest.approx(2e-4, rel=0.05)


def test_one_iteration_tells_nothing() -> None:
    with pytest.raises(ValueError, match="1 iterations"):
        fit_engine_time([Between(1e-3, 1, 0)])


def test_a_watched_executor_is_the_executor(known: Any) -> None:
    executor = known()
    watched = Watched(executor)
    log, table = IdLog(np.zeros(4, np.int32)), np.zeros(1, np.int32)
    batch = Batch([Segment(-1, log, 0, 3, table), Segment(-1, log, 2, 1, table)])
    for _ in range(3):
        assert watched.run(batch).duration_s == executor.seconds(batch)
    assert [(each.sequences, each.prompts) for each in watched.between] == [(2, 1.0), (2, 1.0)]
    assert all(0 <= each.seconds < 1 for each in watched.between)
    assert watched.noise == executor.noise


class SlowLinks:
    pending = 7

    def wait(self, timeout_s: float | None = None) -> None:
        time.sleep(0.05)


def test_waiting_for_transfers_while_nothing_runs_is_not_the_engines_time(known: Any) -> None:
    links = WatchedLinks(SlowLinks())
    watched = Watched(known(), links)
    batch = Batch([Segment(-1, IdLog(np.zeros(4, np.int32)), 0, 1, np.zeros(1, np.int32))])
    watched.run(batch)
    links.wait()
    watched.run(batch)
    time.sleep(0.05)
    watched.run(batch)
    waiting, working = watched.between
    assert waiting.seconds < 0.04
    assert working.seconds >= 0.05
    assert links.pending == 7
