"""Improvements are paired by seed, counted from one baseline, and significant only where a test says so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvarena.framework.report import load_run
from kvarena.framework.report.improvement import ImprovementTable, improvement, improvements, interval
from kvarena.framework.report.rows import group_rows
from kvarena.framework.report.table import METRICS, make_table

RunMaker = Callable[..., Path]
P50, TOKENS, HITS = (next(one for one in METRICS if one.name == name) for name in (
    "ttft_p50_s", "output_tokens_per_s", "hit_ratio_token"
))  # fmt: skip


def _set(folder: Path, ttft_s: float, speed: float, hits: float, saturated: bool = False) -> Path:
    """Overwrite the figures of a run."""
    summary = json.loads((folder / "summary.json").read_text())
    summary["latency"]["ttft_s"]["p50"] = ttft_s
    summary["throughput"]["output_tokens_per_s"] = speed
    summary["cache"]["hit_ratio"]["token"] = hits
    summary["run"]["saturated"] = saturated
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def _tables(folders: list[Path], baseline: str | None = None) -> list[ImprovementTable]:
    groups = group_rows([load_run(folder) for folder in folders])
    return improvements([make_table(setting, rows) for setting, rows in groups.items()], baseline)


def _pair(make_run: RunMaker, own: list[float], base: list[float]) -> list[Path]:
    return [
        _set(make_run(system, seed, count=8), ttft_s, 100.0 / max(ttft_s, 1.0), hits)
        for system, values, hits in (("vllm", base, 0.25), ("pensieve", own, 0.75))
        for seed, ttft_s in enumerate(values)
    ]


def test_factors_and_points_by_hand(make_run: RunMaker) -> None:
    (table,) = _tables(_pair(make_run, [1.0, 2.0, 4.0], [2.0, 8.0, 32.0]))
    assert (table.baseline, [row.label for row in table.rows]) == ("vllm", ["pensieve"])
    shorter, faster, hits = (table.found["pensieve"][one.name] for one in (P50, TOKENS, HITS))
    assert shorter is not None and faster is not None and hits is not None
    assert (shorter.value, faster.value, hits.value) == pytest.approx((4.0, 4.0, 0.5))  # 2, 4 and 8: their middle is 4
    assert shorter.n == 3
    assert (shorter.low, shorter.high) == pytest.approx((2.0, 8.0), rel=1e-6)  # three seeds: no more can be said
    half = 4.303 * np.std([math.log(2), math.log(4), math.log(8)], ddof=1) / math.sqrt(3)
    assert shorter.significant is bool(math.log(4) > half)
    assert (hits.low, hits.high, hits.significant) == (0.5, 0.5, True)
    assert dict(table.csv_figures("pensieve"))["measured_ttft_p50_s_improvement"] == pytest.approx(4.0)


def test_what_differs_by_seed_more_than_by_system_is_paired(make_run: RunMaker) -> None:
    base = [1.0, 10.0, 100.0, 1000.0]
    (table,) = _tables(_pair(make_run, [value * 0.8 for value in base], base))
    found = table.found["pensieve"]["ttft_p50_s"]
    assert found is not None and found.significant
    (noisy,) = _tables(_pair(make_run, [1.2, 0.7, 1.1, 0.95], [1.0, 1.0, 1.0, 1.0]))
    found = noisy.found["pensieve"]["ttft_p50_s"]
    assert found is not None and found.significant is False
    assert found.low is not None and found.high is not None and found.low < 1 < found.high


def test_one_seed_is_not_tested(make_run: RunMaker) -> None:
    (table,) = _tables(_pair(make_run, [1.0], [2.0]))
    cells = [cell.text for cell in table.cells("pensieve")]
    assert cells[:2] == ["2x", "not tested"]
    assert "differences are not tested" in table.caption


def test_saturated_latencies_are_not_compared(make_run: RunMaker) -> None:
    folders = _pair(make_run, [1.0, 1.0], [2.0, 2.0])
    _set(folders[0], 2.0, 50.0, 0.25, saturated=True)
    (table,) = _tables(folders)
    assert table.found["pensieve"]["ttft_p50_s"] is None
    assert table.found["pensieve"]["output_tokens_per_s"] is not None


def test_a_ratio_to_nothing_is_no_factor(make_run: RunMaker) -> None:
    rows = group_rows([load_run(folder) for folder in _pair(make_run, [1.0], [0.0])]).popitem()[1]
    assert improvement(P50, rows[1], rows[0]) is None


@pytest.mark.parametrize(
    ("systems", "wanted", "expected"),
    [
        (["pensieve", "vllm"], None, "vllm"),
        (["pensieve", "vllm_stateless"], None, "vllm_stateless"),
        (["pensieve", "h2o"], None, "pensieve"),
        (["pensieve", "vllm"], "pensieve", "pensieve"),
        (["pensieve", "vllm"], "gone", None),
        (["vllm"], None, None),
    ],
)
def test_the_baseline(make_run: RunMaker, systems: list[str], wanted: str | None, expected: str | None) -> None:
    found = _tables([make_run(system, count=8) for system in systems], wanted)
    assert [table.baseline for table in found] == ([expected] if expected else [])


def test_measured_and_simulated_have_baselines_of_their_own(make_run: RunMaker) -> None:
    folders = [make_run("vllm", count=8), make_run("pensieve", count=8, folder="sim", backend="simulated")]
    assert _tables(folders) == []


def test_intervals_are_deterministic_and_cover(make_run: RunMaker) -> None:
    rng = np.random.default_rng(7)
    assert interval(np.array([1.0, 2.0, 4.0])) == interval(np.array([1.0, 2.0, 4.0]))
    covered = 0
    for _ in range(200):
        low, high = interval(rng.normal(size=8))
        covered += low <= 0 <= high
    assert 0.88 * 200 <= covered <= 0.99 * 200
