"""Every figure of summary.json against values computed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvarena.framework.metrics import (
    Prices,
    RecordError,
    RequestRecord,
    RunTotals,
    Slo,
    StepRecord,
    TransferRecord,
    summarize,
    write_summary,
)

Maker = Callable[..., RequestRecord]

D = {"count", "mean", "p50", "p90", "p95", "p99", "max"}
SECTIONS = {
    "run": {
        "id", "started", "version", "git_commit", "seed", "backend", "system", "workload", "model", "hardware",
        "status", "saturated", "policies", "overrides",
    },
    "workload": {
        "conversations", "requests", "warmup_requests", "failed", "prompt_tokens", "history_tokens", "reusable_tokens",
        "output_tokens", "duration_s",
    },
    "latency": {"ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s", "normalized_s_per_token", "by_turn"},
    "throughput": {"requests_per_s", "output_tokens_per_s", "prefill_tokens_per_s", "goodput_requests_per_s"},
    "cache": {
        "reused_tokens", "recomputed_tokens", "dropped_tokens", "preempted_tokens", "hit_ratio", "hit_ratio_by_tier",
        "hit_ratio_by_turn", "evicted_pages", "adopted_pages", "faults", "suspensions",
    },
    "transfer": {"bytes", "stall_s"},
    "device": {"busy_s", "busy_fraction", "peak_pages", "peak_kv_bytes"},
    "cost": {"compute_usd", "dram_usd", "ssd_usd", "total_usd", "usd_per_million_output_tokens"},
}  # fmt: skip


def test_schema(make_request: Maker, run_info: dict[str, Any]) -> None:
    summary = summarize([make_request()], [], [], run_info)
    assert summary["schema"] == 1
    assert {name: set(section) for name, section in summary.items() if name != "schema"} == SECTIONS
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s", "normalized_s_per_token"):
        assert set(summary["latency"][name]) == D
    assert set(summary["cache"]["hit_ratio"]) == {"token", "page", "request"}
    assert set(summary["cache"]["reused_tokens"]) == {"device", "host", "disk", "remote"}


def test_nothing_measured_gives_nulls(run_info: dict[str, Any], tmp_path: Path) -> None:
    summary = summarize([], [], [], run_info)
    assert summary["latency"]["ttft_s"] == {"count": 0, **dict.fromkeys(D - {"count"})}
    assert summary["throughput"] == dict.fromkeys(SECTIONS["throughput"])
    assert summary["cache"]["hit_ratio"] == {"token": None, "page": None, "request": None}
    assert summary["workload"]["requests"] == 0
    assert summary["workload"]["duration_s"] is None
    assert json.loads(write_summary(tmp_path, summary).read_text()) == summary


def test_latencies_by_hand(make_request: Maker, run_info: dict[str, Any]) -> None:
    one = make_request(0, token_times=[(2.0, 1), (3.0, 1), (6.0, 3)])
    two = make_request(1, turn=1, arrival_s=1.0, scheduled_s=1.5, first_token_s=5.0, completion_s=5.0, output_tokens=1,
                       token_times=[(5.0, 1)])  # fmt: skip
    latency = summarize([one, two], [], [], run_info)["latency"]
    assert (latency["ttft_s"]["mean"], latency["ttft_s"]["p50"], latency["ttft_s"]["max"]) == (3.0, 3.0, 4.0)
    assert latency["ttft_s"]["p90"] == pytest.approx(2 + 0.9 * 2)
    assert (latency["tpot_s"]["count"], latency["tpot_s"]["mean"]) == (1, 1.0)  # one token has no TPOT
    assert (latency["itl_s"]["count"], latency["itl_s"]["mean"], latency["itl_s"]["max"]) == (4, 1.0, 1.0)
    assert latency["e2e_s"]["mean"] == (6.0 + 4.0) / 2
    assert latency["queue_s"]["mean"] == (1.0 + 0.5) / 2
    assert latency["normalized_s_per_token"]["mean"] == (6.0 / 5 + 4.0 / 1) / 2
    assert [(entry["turn"], entry["ttft_s"]["mean"]) for entry in latency["by_turn"]] == [(0, 2.0), (1, 4.0)]


def test_itl_weighs_a_stretch_by_its_tokens(make_request: Maker, run_info: dict[str, Any]) -> None:
    record = make_request(token_times=[(2.0, 1), (5.0, 1), (6.0, 3)])
    itl = summarize([record], [], [], run_info)["latency"]["itl_s"]
    assert itl["count"] == 4
    assert itl["p50"] == pytest.approx(1 / 3)
    assert itl["mean"] == pytest.approx(1.0)
    assert itl["max"] == 3.0


def test_warmup_is_excluded_and_counted(make_request: Maker, run_info: dict[str, Any]) -> None:
    warm = make_request(0, warmup=True, completion_s=100.0, token_times=[(2.0, 1), (100.0, 4)])
    measured = make_request(1, arrival_s=3.0, scheduled_s=4.0, first_token_s=5.0, completion_s=13.0)
    steps = [StepRecord(0.0, 2.0, 1, 10, 0, 0, 1, 0, 5, stall_s=0.5), StepRecord(4.0, 1.0, 1, 10, 1, 0, 1, 0, 7)]
    transfers = [TransferRecord(0.0, 1.0, "host->device", 1, 1, 100, "load"),
                 TransferRecord(4.0, 5.0, "host->device", 1, 1, 7, "load")]  # fmt: skip
    summary = summarize([warm, measured], steps, transfers, run_info)
    assert (summary["workload"]["requests"], summary["workload"]["warmup_requests"]) == (1, 1)
    assert summary["workload"]["duration_s"] == 10.0
    assert (summary["latency"]["e2e_s"]["count"], summary["latency"]["itl_s"]["count"]) == (1, 0)
    assert summary["throughput"]["prefill_tokens_per_s"] == 1.0
    assert summary["transfer"] == {"bytes": {"host->device": 7}, "stall_s": 0.0}
    assert summary["device"] == {"busy_s": 1.0, "busy_fraction": 0.1, "peak_pages": 7, "peak_kv_bytes": None}


def test_failed_requests_are_counted_and_nothing_else(make_request: Maker, run_info: dict[str, Any]) -> None:
    failed = make_request(
        1, status="failed", scheduled_s=-1.0, first_token_s=-1.0, completion_s=-1.0, reusable_tokens=9
    )
    summary = summarize([make_request(0), failed], [], [], run_info)
    assert (summary["workload"]["requests"], summary["workload"]["failed"]) == (2, 1)
    assert summary["workload"]["reusable_tokens"] == 0
    assert summary["latency"]["ttft_s"]["count"] == 1


def test_hit_ratios(make_request: Maker, run_info: dict[str, Any]) -> None:
    half = make_request(0, turn=1, reusable_tokens=100, reused_device=30, reused_host=20, recomputed=40, dropped=10,
                        reusable_pages=6, reused_pages=3, suspensions=2, preempted=17)  # fmt: skip
    full = make_request(1, turn=2, reusable_tokens=20, reused_disk=20, reusable_pages=1, reused_pages=1)
    first = make_request(2)
    cache = summarize([half, full, first], [], [], run_info, totals=RunTotals({"device": 4}))["cache"]
    assert cache["reused_tokens"] == {"device": 30, "host": 20, "disk": 20, "remote": 0}
    assert cache["hit_ratio"] == {"token": 70 / 120, "page": 4 / 7, "request": (0.5 + 1.0) / 2}
    assert cache["hit_ratio_by_tier"] == {"device": 30 / 120, "host": 20 / 120, "disk": 20 / 120, "remote": 0.0}
    assert cache["hit_ratio_by_turn"] == [
        {"turn": 0, "token": None}, {"turn": 1, "token": 0.5}, {"turn": 2, "token": 1.0}
    ]  # fmt: skip
    assert (cache["recomputed_tokens"], cache["dropped_tokens"], cache["preempted_tokens"]) == (40, 10, 17)
    assert (cache["evicted_pages"], cache["suspensions"]) == ({"device": 4}, 2)


def test_a_run_over_three_tiers(make_request: Maker, run_info: dict[str, Any]) -> None:
    """What the engine of a hierarchy leaves: loads from two tiers, copies both ways, faults, bytes that cost."""
    record = make_request(0, turn=1, reusable_tokens=96, reused_device=16, reused_host=48, reused_disk=16,
                          recomputed=16, reusable_pages=6, reused_pages=5, load_stall_s=0.25,
                          completion_s=3600.0)  # fmt: skip
    steps = [StepRecord(1.0, 1.0, 1, 26, 0, 16, 1, 0, 6, host_pages=9, disk_pages=4, stall_s=0.125),
             StepRecord(2.0, 4.0, 4, 0, 4, 0, 1, 0, 6, host_pages=9, disk_pages=4, stall_s=0.5)]  # fmt: skip
    transfers = [TransferRecord(1.0, 1.5, "host->device", 3, 4, 300, "swap-in", 0),
                 TransferRecord(1.0, 1.2, "disk->host", 1, 4, 100, "fetch", 0),
                 TransferRecord(1.2, 1.6, "host->device", 1, 4, 100, "swap-in", 0),
                 TransferRecord(2.0, 3.0, "device->host", 2, 4, 200, "swap-out"),
                 TransferRecord(2.0, 5.0, "host->disk", 2, 4, 200, "swap-out")]  # fmt: skip
    totals = RunTotals({"device": 7, "host": 3, "disk": 1}, 6, 4 * 2**30, 16 * 2**30, {"checksum": 2})
    prices = Prices(1.0, 0.5, 0.25)
    summary = summarize([record], steps, transfers, run_info, totals=totals, prices=prices)
    cache = summary["cache"]
    assert cache["reused_tokens"] == {"device": 16, "host": 48, "disk": 16, "remote": 0}
    assert cache["hit_ratio_by_tier"] == {"device": 1 / 6, "host": 0.5, "disk": 1 / 6, "remote": 0.0}
    assert sum(cache["hit_ratio_by_tier"].values()) == pytest.approx(cache["hit_ratio"]["token"])
    assert cache["evicted_pages"] == {"device": 7, "host": 3, "disk": 1}
    assert cache["faults"] == {"checksum": 2}
    assert summary["transfer"] == {
        "bytes": {"device->host": 200, "disk->host": 100, "host->device": 400, "host->disk": 200}, "stall_s": 0.625,
    }  # fmt: skip
    assert summary["device"]["peak_pages"] == 6
    cost = summary["cost"]
    assert (cost["compute_usd"], cost["dram_usd"], cost["ssd_usd"], cost["total_usd"]) == (1.0, 2.0, 4.0, 7.0)


def test_goodput_needs_both_limits(make_request: Maker, run_info: dict[str, Any]) -> None:
    good, late = make_request(0), make_request(1, first_token_s=4.0)  # TPOT 1.0 and 0.5
    records = [good, late]
    assert summarize(records, [], [], run_info)["throughput"]["goodput_requests_per_s"] is None
    for slo, served in ((Slo(ttft_s=2.0), 1), (Slo(tpot_s=0.9), 1), (Slo(2.0, 0.9), 0), (Slo(4.0, 1.0), 2)):
        goodput = summarize(records, [], [], run_info, slo=slo)["throughput"]["goodput_requests_per_s"]
        assert goodput == pytest.approx(served / 6)


def test_cost(make_request: Maker, run_info: dict[str, Any]) -> None:
    record = make_request(completion_s=3600.0)
    totals = RunTotals(host_bytes=2 * 2**30)
    unpriced = summarize([record], [], [], run_info, totals=totals)["cost"]
    assert unpriced == dict.fromkeys(SECTIONS["cost"])
    partly = summarize([record], [], [], run_info, totals=totals, prices=Prices(3.0))["cost"]
    assert (partly["compute_usd"], partly["total_usd"]) == (3.0, None)  # host memory is used but has no price
    priced = summarize([record], [], [], run_info, totals=totals, prices=Prices(3.0, 0.25))["cost"]
    assert priced == {"compute_usd": 3.0, "dram_usd": 0.5, "ssd_usd": None, "total_usd": 3.5,
                      "usd_per_million_output_tokens": 3.5 / 5 * 1e6}  # fmt: skip


def test_total_peak_wins_over_the_steps(make_request: Maker, run_info: dict[str, Any]) -> None:
    steps = [StepRecord(0.0, 1.0, 1, 1, 0, 0, 1, 0, 5)]
    assert summarize([make_request()], steps, [], run_info)["device"]["peak_pages"] == 5
    known = summarize([make_request()], steps, [], run_info, totals=RunTotals(peak_pages=9))
    assert known["device"]["peak_pages"] == 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"reusable_tokens": 10, "recomputed": 9},
            r"request 0: the parts do not add up: reusable_tokens = 10, .*recomputed = 9",
        ),
        ({"reused_device": -1, "recomputed": 1}, "negative: reused_device = -1"),
        ({"scheduled_s": 3.0}, "times out of order: arrival_s = 0.0, scheduled_s = 3.0"),
        ({"output_tokens": 0}, "no output: output_tokens = 0"),
        ({"reused_pages": 1}, "more than there are: reused_pages = 1, reusable_pages = 0"),
        ({"token_times": [(2.0, 1), (6.0, 3)]}, "request 0 has times for 4 of 5 tokens"),
    ],
)
def test_contradictions_are_internal_errors(
    make_request: Maker, run_info: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecordError, match=message):
        summarize([make_request(0, **fields)], [], [], run_info)


@given(st.lists(st.tuples(*[st.integers(0, 1000)] * 6), min_size=1, max_size=30))
def test_every_reusable_token_is_counted_once(parts: list[tuple[int, ...]]) -> None:
    names = ("reused_device", "reused_host", "reused_disk", "reused_remote", "recomputed", "dropped")
    records = [
        RequestRecord(i, i, 0, 0.0, 1, sum(p), sum(p), 1, 0.0, 1.0, 1.0, **dict(zip(names, p, strict=True)))
        for i, p in enumerate(parts)
    ]
    summary = summarize(records, [], [], {})
    cache = summary["cache"]
    counted = sum(cache["reused_tokens"].values()) + cache["recomputed_tokens"] + cache["dropped_tokens"]
    assert counted == summary["workload"]["reusable_tokens"] == sum(map(sum, parts))
    if counted:
        assert sum(cache["hit_ratio_by_tier"].values()) == pytest.approx(cache["hit_ratio"]["token"])


@pytest.mark.parametrize(("knob", "value"), [("ttft_s", 0.0), ("tpot_s", -1.0)])
def test_slo_refuses(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"slo {knob} is {value}, expected more than 0 or null"):
        Slo(**{knob: value})


def test_prices_refuse() -> None:
    with pytest.raises(ValueError, match="price ssd_usd_per_gib_hour is -1"):
        Prices(ssd_usd_per_gib_hour=-1)


def test_summary_is_whole_or_not_there(make_request: Maker, run_info: dict[str, Any], tmp_path: Path) -> None:
    summary = summarize([make_request()], [], [], run_info)
    write_summary(tmp_path, summary)
    before = (tmp_path / "summary.json").read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_summary(tmp_path, summary | {"schema": float("nan")})
    assert (tmp_path / "summary.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
