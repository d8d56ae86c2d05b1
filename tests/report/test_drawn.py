"""What the figures show is what the records say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvarena.framework.metrics import RequestRecord, RunRecorder, StepRecord, summarize, write_summary
from kvarena.framework.report import load_run
from kvarena.framework.report.gallery import shown_ones
from kvarena.framework.report.ladder import ladders
from kvarena.framework.report.memory_figures import held
from kvarena.framework.report.pareto import Point, front, trades
from kvarena.framework.report.parts import mean_parts, parts
from kvarena.framework.report.rows import Row, group_rows
from kvarena.framework.report.runs import Run
from kvarena.framework.report.table import make_table
from kvarena.framework.report.turn_figures import by_turn

RunMaker = Callable[..., Path]
STORED = Path(__file__).parent / "stored"
INFO = {
    "id": "x", "started": "2026-11-20T00:00:00Z", "version": "0.1.0", "seed": 0, "backend": "torch", "system": "vllm",
    "workload": "chat", "model": "tiny", "hardware": "local", "status": "ok",
}  # fmt: skip


def _stored() -> list[Run]:
    return [load_run(folder.parent) for folder in sorted(STORED.glob("served/*/summary.json"))]


def _write(folder: Path, requests: list[RequestRecord], steps: list[StepRecord]) -> Run:
    with RunRecorder(folder) as recorder:
        for request in requests:
            recorder.request(request)
        for step in steps:
            recorder.step(step)
    write_summary(folder, summarize(recorder.requests, recorder.steps, recorder.transfers, INFO))
    return load_run(folder)


def _request(load_stall_s: float) -> RequestRecord:
    """10 s in the queue, 4 s to the first token, 6 s to the last; 60 of 100 tokens are reused and 10 computed again."""
    return RequestRecord(
        0, 0, 1, 0.0, 20, 80, 80, 3, scheduled_s=10.0, first_token_s=14.0, completion_s=20.0, reused_device=50,
        reused_host=10, recomputed=10, dropped=10, load_stall_s=load_stall_s, token_times=[(14.0, 1), (20.0, 2)],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stall_s", "expected"),
    [
        (0.0, (10.0, 0.0, 4.0 / 3, 8.0 / 3, 6.0)),  # 30 tokens are computed, 10 of them again
        (1.0, (10.0, 1.0, 1.0, 2.0, 6.0)),
        (7.0, (10.0, 7.0, 0.0, 0.0, 3.0)),  # more than there is before the first token
        (99.0, (10.0, 10.0, 0.0, 0.0, 0.0)),
    ],
)
def test_parts_by_hand(tmp_path: Path, stall_s: float, expected: tuple[float, ...]) -> None:
    run = _write(tmp_path, [_request(stall_s)], [])
    found = mean_parts(Row("vllm", "vllm", (run,)))
    assert list(found) == ["queue", "load stall", "recompute", "prefill", "decode"]
    assert tuple(found.values()) == pytest.approx(expected)


def test_parts_add_up_to_the_latency() -> None:
    for run in _stored():
        columns = run.requests(["arrival_s", "completion_s"])
        found = parts(run)
        assert all((values >= 0).all() for values in found.values())
        assert sum(found.values()) == pytest.approx(columns["completion_s"] - columns["arrival_s"])
        assert sum(values.mean() for values in found.values()) == pytest.approx(run.figure("latency", "e2e_s", "mean"))


def test_tokens_by_turn_are_those_of_the_summaries() -> None:
    for rows in group_rows(_stored()).values():
        for row in rows:
            turns, found = by_turn(row)
            requests = [run.requests(["turn", "reusable_tokens"]) for run in row.runs]
            for i, turn in enumerate(turns):
                own = np.concatenate([one["reusable_tokens"][one["turn"] == turn - 1] for one in requests])
                assert sum(values[i] for values in found.values()) == pytest.approx(own.mean())


def test_memory_over_time_by_hand(tmp_path: Path) -> None:
    steps = [
        StepRecord(0.0, 1.0, 1, 1, 0, 0, 1, 0, 4),
        StepRecord(1.0, 1.0, 1, 1, 0, 0, 1, 0, 9, host_pages=2, device_evicted=3),
        StepRecord(3.0, 1.0, 1, 1, 0, 0, 1, 0, 5, host_pages=7, device_evicted=3, host_evicted=1),
    ]
    run = _write(tmp_path, [_request(0.0)], steps)
    edges, kept, gone = held(run, bins=4)
    assert edges.tolist() == [0, 1, 2, 3, 4]
    assert {tier: values.tolist() for tier, values in kept.items()} == {"device": [4, 9, 9, 5], "host": [0, 2, 2, 7]}
    assert {tier: values.tolist() for tier, values in gone.items()} == {"device": [0, 3, 0, 0], "host": [0, 0, 0, 1]}


def test_a_ladder_is_what_the_summaries_say() -> None:
    runs = _stored()
    (ladder,) = ladders(runs)
    assert "workload.rate" not in ladder.setting.knobs
    assert ladder.slo_ttft_s == 2.0
    assert {climber.row.label for climber in ladder.climbers} == {"vllm_stateless", "vllm", "pensieve"}
    for climber in ladder.climbers:
        assert [rung.rate for rung in climber.rungs] == [4.0, 16.0]
        for rung in climber.rungs:
            own = [run for run in runs if run.label == climber.row.label]
            own = [run for run in own if float(run.knob("workload.rate") or 0) == rung.rate]
            told = sorted(run.figure("latency", "ttft_s", "p99") or 0 for run in own)
            assert sorted(rung.values("latency", "ttft_s", "p99")) == told
            assert len(told) == 2


def test_one_rate_is_no_ladder(make_run: RunMaker) -> None:
    assert ladders([load_run(make_run("vllm", seed, overrides=["workload.rate=1"])) for seed in (0, 1)]) == []


def test_what_a_user_and_a_device_get() -> None:
    tables = [make_table(setting, rows) for setting, rows in group_rows(_stored()).items()]
    (trade,) = trades(tables)
    assert {label: len(points) for label, points in trade.points.items()} == dict.fromkeys(
        ("vllm_stateless", "vllm", "pensieve"), 2
    )
    row = tables[0].rows[0]
    tpot, speed = row.estimate(("latency", "tpot_s", "p50")), row.estimate(("throughput", "output_tokens_per_s"))
    assert tpot is not None and speed is not None
    assert trade.points[row.label][0] == Point(1 / tpot.mean, speed.mean)


def test_a_front_is_what_nothing_beats() -> None:
    points = [Point(1, 5), Point(2, 4), Point(2, 3), Point(3, 4), Point(4, 1), Point(1, 5)]
    assert front(points) == [Point(1, 5), Point(3, 4), Point(4, 1)]


def test_of_many_settings_the_busiest_calm_one_is_drawn(make_run: RunMaker) -> None:
    folders = [
        make_run("vllm", count=8, folder=f"{rate}-{kind}", overrides=[f"workload.rate={rate}"], backend=kind)
        for kind in ("torch", "simulated")
        for rate in ((1, 2, 4) if kind == "torch" else (8,))
    ]
    tables = [make_table(setting, rows) for setting, rows in group_rows([load_run(one) for one in folders]).items()]
    shown = [(table.setting.kind, table.setting.knobs) for table in shown_ones(tables)]
    assert shown == [("measured", "workload.rate=4"), ("simulated", "workload.rate=8")]
