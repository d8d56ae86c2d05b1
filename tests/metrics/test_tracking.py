"""W&B gets what it should, and can neither stop nor slow a run."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import kvarena.conf
from kvarena.framework.metrics import RequestRecord, RunRecorder, StepRecord, summarize, tracking
from kvarena.framework.metrics.tracking import WandbKnobs, open_tracker
from kvarena.framework.metrics.tracking_rows import AXES, METRICS, RowSampler
from kvarena.framework.metrics.tracking_summary import flat, tables
from kvarena.framework.schema import ConfigError, build

Maker = Callable[..., RequestRecord]


def _step(i: int) -> StepRecord:
    return StepRecord(float(i), 1.0, 1, 10, 2, 0, 3, 1, 40)


def _inspect(folder: Path, *options: str) -> str:
    command = [
        sys.executable,
        "-m",
        "wandb",
        "leet",
        "inspect",
        "--json",
        *options,
        str(folder / "wandb" / "latest-run"),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.e2e
def test_an_offline_run_can_be_read_back(make_request: Maker, run_info: dict[str, Any], tmp_path: Path) -> None:
    info = run_info | {"folder": tmp_path, "sweep": "sweep-7", "task": "serve", "backend": "torch"}
    knobs = {"tags": ["mine"], "max_rows_per_s": 1e6}
    tracker = open_tracker("wandb", knobs, info, {"memory": {"page_size": 16}}, lambda: _draw(tmp_path))
    with RunRecorder(tmp_path, tracker) as recorder:
        for i in range(4):
            recorder.request(make_request(i))
            recorder.step(_step(i))
    summary = summarize(recorder.requests, recorder.steps, recorder.transfers, info)
    tracker.finish(summary)
    assert (tracker.errors, tracker.problem) == (0, None)
    run = json.loads(_inspect(tmp_path, "--summary"))
    assert (run["state"], run["exit_code"], run["project"]) == ("finished", 0, "kvarena")
    assert run["config"]["memory"] == {"page_size": 16}
    assert (run["config"]["run"]["system"], run["config"]["run"]["seed"]) == ("vllm", 3)
    assert run["summary"]["latency/ttft_s/p50"] == summary["latency"]["ttft_s"]["p50"] == 2.0
    assert run["summary"]["workload/requests"] == 4
    assert run["summary"]["percentiles"]["ncols"] == 8
    assert run["summary"]["figures/curve"]["_type"] == "image-file"
    assert run["summary"]["figures/lines"]["_type"] == "html-file"
    assert set(run["tags"]) == {"vllm", "torch", "chat", "tiny", "local", "mine"}
    records = [json.loads(line) for line in _inspect(tmp_path).splitlines()]
    (described,) = (record["run"] for record in records if record["type"] == "run")
    assert (described["run_group"], described["job_type"]) == ("sweep-7", "serve")
    metrics = {record["metric"]["name"]: record["metric"] for record in records if record["type"] == "metric"}
    assert set(metrics) == {*AXES, *METRICS}
    assert metrics["queue/waiting"]["step_metric"] == "time_s"
    assert metrics["queue/waiting"]["summary"] == {"max": True}
    assert (
        sum("rate/output_tokens_per_s" in json.dumps(record) for record in records if record["type"] == "history") == 4
    )
    logged = json.dumps([record for record in records if record["type"] == "artifact"])
    assert all(f"{tmp_path}/{name}" in logged for name in ("requests.parquet", "steps.parquet", "timeline.json"))


def _draw(folder: Path) -> None:
    (folder / "figures").mkdir()
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    (folder / "figures" / "curve.png").write_bytes(base64.b64decode(pixel))
    (folder / "figures" / "lines.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')


def test_only_the_run_folder_is_written(make_request: Maker, run_info: dict[str, Any], tmp_path: Path) -> None:
    tracker = open_tracker("none", {}, run_info | {"folder": tmp_path}, {})
    tracker.step(_step(0))
    tracker.request(make_request())
    tracker.finish({})
    assert list(tmp_path.iterdir()) == []


def _tracker_with(init: Callable[[dict[str, Any]], Any], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    monkeypatch.setattr(tracking, "open_run", lambda arguments, *timeouts: init(arguments))
    monkeypatch.setattr(tracking, "kill_service", lambda: None)
    knobs = {"start_timeout_s": 0.2, "finish_timeout_s": 0.2, "max_rows_per_s": 1e6}
    return open_tracker("wandb", knobs, {"folder": folder}, {})


class _BrokenRun:
    def log(self, row: dict[str, float]) -> None:
        raise RuntimeError("no\nspace")

    summary = None

    def finish(self, exit_code: int) -> None:
        raise SystemExit("gone")


def test_a_tracker_that_fails_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = _tracker_with(lambda _: _BrokenRun(), monkeypatch, tmp_path)
    with caplog.at_level(logging.WARNING):
        for i in range(5):
            tracker.step(_step(i))
        tracker.finish(None)
    assert tracker.errors == 6
    assert tracker.problem == "RuntimeError: no space"
    assert len(caplog.records) == 1


def test_a_tracker_that_never_opens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(_: dict[str, Any]) -> Any:
        raise OSError("no such project")

    tracker = _tracker_with(refuse, monkeypatch, tmp_path)
    tracker.step(_step(0))
    tracker.finish({"a": 1})
    assert (tracker.errors, tracker.problem) == (1, "OSError: no such project")


@pytest.mark.parametrize("where", ["start", "log"])
def test_a_tracker_that_hangs_slows_nothing(where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    release = threading.Event()

    class Hanging:
        def log(self, row: dict[str, float]) -> None:
            release.wait()

    def init(_: dict[str, Any]) -> Any:
        if where == "start":
            release.wait()
        return Hanging()

    began_s = time.monotonic()
    tracker = _tracker_with(init, monkeypatch, tmp_path)
    for i in range(1000):
        tracker.step(_step(i))
    tracker.finish(None)
    took_s = time.monotonic() - began_s
    later = open_tracker("wandb", {}, {"folder": tmp_path}, {})
    release.set()
    _let_end(tracking._GAVE_UP, "kvarena-wandb")
    assert took_s < 3
    assert tracker.errors >= 1
    assert "no answer" in tracker.problem or "keep up" in tracker.problem
    assert later.problem == "it did not answer in an earlier run; this one goes on without it"


def test_a_simulated_run_does_not_wait_for_its_tracker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    release, rows = threading.Event(), list[dict[str, float]]()

    class Slow:
        def log(self, row: dict[str, float]) -> None:
            rows.append(row)

        def finish(self, exit_code: int) -> None: ...

    monkeypatch.setattr(tracking, "open_run", lambda *_: release.wait() and Slow())
    info = {"folder": tmp_path, "backend": "simulated"}
    tracker = open_tracker("wandb", {"max_rows_per_s": 1e6}, info, {})  # would wait for 20 s
    for i in range(3):
        tracker.step(_step(i))
    assert rows == []
    release.set()
    tracker.finish(None)
    assert ([row["time_s"] for row in rows], tracker.errors) == ([1.0, 2.0, 3.0], 0)


def _let_end(*names: str) -> None:
    for thread in threading.enumerate():
        if thread.name in names:
            thread.join(5)


def test_a_summary_is_flat_and_its_lists_are_tables() -> None:
    spread = {"count": 2, "mean": 1.5, "p50": 1.5, "p90": 2.0, "p95": 2.0, "p99": 2.0, "max": 2.0}
    summary = {
        "latency": {"ttft_s": spread, "by_turn": [{"turn": 0, "ttft_s": spread}, {"turn": 1, "ttft_s": spread}]},
        "quality": {"kl_nats": {"mean": 0.1, "low": None, "high": 0.2, "n": 4}},
        "run": {"overrides": ["a=1"], "git_commit": None},
    }
    assert flat(summary) == {
        **{f"latency/ttft_s/{key}": value for key, value in spread.items()},
        "quality/kl_nats/mean": 0.1, "quality/kl_nats/high": 0.2, "quality/kl_nats/n": 4,
    }  # fmt: skip
    percentiles, turns = tables(summary)
    assert (percentiles.name, percentiles.rows) == ("percentiles", [["latency/ttft_s", *spread.values()]])
    assert (turns.name, turns.columns[:2]) == ("latency/by_turn", ["turn", "ttft_s/count"])
    assert [row[0] for row in turns.rows] == [0, 1]


def test_every_row_has_an_axis_and_every_metric_a_summary(make_request: Maker) -> None:
    sampler = RowSampler(1e9, 10)
    sampler.request(make_request(reusable_tokens=8, reused_device=4))
    row = sampler.step(_step(0))
    assert row is not None
    assert set(row) == {*AXES, *METRICS}
    assert row["request/hit_ratio"] == 0.5
    assert {axis for axis, _ in METRICS.values()} == set(AXES)


def test_rows_are_bounded_and_add_up(make_request: Maker) -> None:
    sampler = RowSampler(1e-3, 3)
    rows = []
    for i in range(100):
        sampler.request(make_request(i))
        row = sampler.step(_step(i))
        rows += [row] if row else []
    rest = sampler.rest()
    assert rest is not None
    assert len(rows) == 1
    assert rows[0]["step/decode_tokens"] + rest["step/decode_tokens"] == 200
    assert (rest["time_s"], rest["requests_done"], rest["request/mean_ttft_s"]) == (100.0, 100, 2.0)
    hasty = RowSampler(1e9, 3)
    assert sum(hasty.step(_step(i)) is not None for i in range(100)) + (hasty.rest() is not None) == 3


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("mlflow", {}, "unknown tracking 'mlflow'; expected none or wandb"),
        ("none", {"mode": "offline"}, "tracking=none: unknown knob 'mode'"),
        ("wandb", {"mode": "ofline"}, "tracking=wandb: mode is 'ofline'"),
        ("wandb", {"max_rows": 0}, "tracking=wandb: max_rows is 0, expected more than 0"),
    ],
)
def test_bad_config(name: str, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_tracker(name, knobs, {}, {})


def test_the_yaml_lists_every_knob_with_its_default() -> None:
    folder = Path(kvarena.conf.__file__).parent / "tracking"
    options = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")}
    assert {name: options[name].pop("name") for name in options} == {"none": "none", "wandb": "wandb"}
    assert options["none"] == {}
    assert build(WandbKnobs, options["wandb"], "tracking") == WandbKnobs()
    assert list(options["wandb"]) == list(WandbKnobs.__dataclass_fields__)
