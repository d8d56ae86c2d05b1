"""Errors, spreads, verdicts and orders, on figures that are easy to check."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from kvarena.framework.fidelity.compare import Pair, Row, compare_system, order_pairs
from kvarena.framework.fidelity.result import Fidelity


def summary(ttft_s: float, hit: float = 0.5, host: float = 0.0, tpot: float | None = 0.01) -> dict[str, Any]:
    return {
        "latency": {
            "ttft_s": {"mean": ttft_s, "p99": 4 * ttft_s},
            "tpot_s": {"mean": tpot, "p99": tpot},
            "e2e_s": {"mean": 10 * ttft_s, "p99": 20 * ttft_s},
        },
        "cache": {"hit_ratio": {"token": hit}, "hit_ratio_by_tier": {"device": hit - host, "host": host, "disk": 0.0}},
    }


def find(rows: list[Row], metric: str, statistic: str) -> Row:
    (row,) = [row for row in rows if (row.metric, row.statistic) == (metric, statistic)]
    return row


def test_an_error_is_held_against_the_median_of_the_real_runs() -> None:
    rows = compare_system("vllm", [summary(0.1), summary(0.2), summary(0.12)], summary(0.126))
    row = find(rows, "TTFT", "mean")
    assert row.centre == pytest.approx(0.12)
    assert row.error == pytest.approx(0.05)
    assert row.spread == pytest.approx((-1 / 6, 2 / 3))
    assert row.goal == 0.05
    assert find(rows, "TTFT", "p99").goal == 0.10
    assert find(rows, "end-to-end", "mean").error == pytest.approx(0.05)
    assert find(rows, "TPOT", "mean").error == 0.0


@pytest.mark.parametrize(
    ("real", "simulated", "verdict"),
    [
        ((1.0, 1.0, 1.0), 1.04, "goal"),
        ((1.0, 1.0, 1.0), 0.94, "missed"),
        ((0.9, 1.0, 1.2), 1.1, "spread"),
        ((0.9, 1.0, 1.2), 1.3, "missed"),
        ((1.0,), 1.06, "missed"),  # one run has no spread
    ],
)
def test_a_figure_is_within_its_goal_or_among_the_real_ones_or_missed(
    real: tuple[float, ...], simulated: float, verdict: str
) -> None:
    assert Row("vllm", "TTFT", "mean", real, simulated, 0.05).verdict == verdict


def test_hit_ratios_differ_by_points_and_tiers_that_nobody_has_are_left_out() -> None:
    rows = compare_system("pensieve", [summary(1.0, 0.80, 0.3), summary(1.0, 0.80, 0.3)], summary(1.0, 0.79, 0.32))
    hits = {row.statistic: row for row in rows if row.metric == "hit ratio"}
    assert set(hits) == {"all", "device", "host"}
    assert hits["all"].error == pytest.approx(-0.01)
    assert (hits["all"].verdict, hits["host"].verdict) == ("goal", "missed")


def test_a_figure_that_no_run_has_is_no_row() -> None:
    rows = compare_system("vllm", [summary(1.0, tpot=None)], summary(1.0, tpot=None))
    assert "TPOT" not in {row.metric for row in rows}


def test_only_systems_that_all_real_runs_separate_have_an_order() -> None:
    rows = [
        Row("a", "TTFT", "mean", (1.0, 1.1), 1.0, 0.05),
        Row("b", "TTFT", "mean", (1.05, 1.3), 0.9, 0.05),
        Row("c", "TTFT", "mean", (1.4, 1.5), 0.95, 0.05),
        Row("c", "TTFT", "p99", (9.0, 9.0), 9.0, 0.05),
    ]
    assert order_pairs(rows) == [Pair("TTFT", "a", "c", kept=False), Pair("TTFT", "b", "c", kept=True)]


def test_what_is_written_says_the_same_in_every_form() -> None:
    rows = compare_system("vllm", [summary(0.1), summary(0.11)], summary(0.2))
    rows += compare_system("pensieve", [summary(0.2), summary(0.21)], summary(0.1))
    found = Fidelity(tuple(rows), tuple(order_pairs(rows)), 2, "chats, tiny")
    section = found.section()
    assert section["missed"] == len(found.missed) == 8
    assert section["orders_broken"] == len(found.broken) == 2
    table = list(csv.DictReader(io.StringIO(found.csv())))
    assert [row["verdict"] for row in table] == [row["verdict"] for row in section["rows"]]
    assert table[0]["real"] == "0.1 0.11"
    text = found.markdown()
    assert text.count("MISSED") == 8
    assert "TTFT: vllm before pensieve, simulated the other way round" in text
    assert "chats, tiny" in text


def test_a_machine_that_was_not_quiet_is_named() -> None:
    quiet = [Row("vllm", "TTFT", "mean", (1.0, 1.02, 1.04), 1.0, 0.05)]
    busy = [Row("vllm", "TTFT", "mean", (1.0, 1.3, 1.4), 1.0, 0.05)]
    assert Fidelity(tuple(quiet), (), 3, "").unrest == pytest.approx(0.02 / 1.02)
    assert not any("not quiet" in line for line in Fidelity(tuple(quiet), (), 3, "").verdicts())
    assert any("not quiet" in line for line in Fidelity(tuple(busy), (), 3, "").verdicts())
