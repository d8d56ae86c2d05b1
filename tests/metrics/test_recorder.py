"""What a recorder leaves behind: whole files, fixed schemas, also after a fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kvarena.framework.metrics import RequestRecord, RunRecorder, StepRecord, TransferRecord

Maker = Callable[..., RequestRecord]

REQUEST_COLUMNS = [
    "request", "conversation", "turn", "arrival_s", "scheduled_s", "first_token_s", "completion_s", "prompt_tokens",
    "history_tokens", "reusable_tokens", "reused_device", "reused_host", "reused_disk", "reused_remote", "recomputed",
    "dropped", "output_tokens", "load_stall_s", "suspensions", "status",
]  # fmt: skip
STEP_COLUMNS = [
    "start_s", "duration_s", "n_steps", "prefill_tokens", "decode_tokens", "recompute_tokens", "running", "waiting",
    "device_pages", "host_pages", "disk_pages", "stall_s",
]  # fmt: skip
TRANSFER_COLUMNS = ["start_s", "end_s", "link", "pages", "layers", "bytes", "reason", "request"]
FILES = {"requests.parquet", "steps.parquet", "transfers.parquet", "timeline.json"}


def _fill(recorder: RunRecorder, make_request: Maker, count: int = 3) -> None:
    for i in range(count):
        recorder.step(StepRecord(i * 1.0, 0.5, 1, 10 if i % 2 else 0, 1, 0, 1, 0, 5))
        recorder.transfer(TransferRecord(i * 1.0, i + 1.5, "host->device", 2, 4, 64, "load", i))
        recorder.request(make_request(i, arrival_s=float(i), scheduled_s=i + 1.0, first_token_s=i + 2.0,
                                      completion_s=i + 6.0, output_ids=[1, 2, 3, 4, i]))  # fmt: skip


def test_files_are_there_and_alike_with_and_without_rows(make_request: Maker, tmp_path: Path) -> None:
    with RunRecorder(tmp_path / "none"):
        pass
    with RunRecorder(tmp_path / "some") as recorder:
        _fill(recorder, make_request)
    assert {path.name for path in (tmp_path / "none").iterdir()} == FILES
    for name, columns in zip(
        sorted(FILES - {"timeline.json"}), (REQUEST_COLUMNS, STEP_COLUMNS, TRANSFER_COLUMNS), strict=True
    ):
        none, some = (pq.read_table(tmp_path / folder / name) for folder in ("none", "some"))
        assert none.schema.equals(some.schema), name
        assert (none.num_rows, some.num_rows) == (0, 3)
        assert some.column_names[: len(columns)] == columns


def test_values_come_back(make_request: Maker, tmp_path: Path) -> None:
    with RunRecorder(tmp_path, save_tokens=True) as recorder:
        _fill(recorder, make_request)
        recorder.request(make_request(9, status="failed", scheduled_s=-1.0, first_token_s=-1.0, completion_s=-1.0))
    rows = pq.read_table(tmp_path / "requests.parquet").to_pylist()
    assert [row["output_ids"] for row in rows] == [[1, 2, 3, 4, 0], [1, 2, 3, 4, 1], [1, 2, 3, 4, 2], []]
    assert (rows[1]["first_token_s"], rows[1]["status"], rows[1]["warmup"]) == (3.0, "ok", False)
    assert (rows[3]["scheduled_s"], rows[3]["completion_s"], rows[3]["status"]) == (None, None, "failed")
    assert pq.read_table(tmp_path / "transfers.parquet").to_pylist()[2]["link"] == "host->device"


def test_output_ids_are_left_out_unless_asked_for(make_request: Maker, tmp_path: Path) -> None:
    with RunRecorder(tmp_path) as recorder:
        _fill(recorder, make_request)
    assert "output_ids" not in pq.read_table(tmp_path / "requests.parquet").column_names


def test_rows_beyond_one_block(make_request: Maker, tmp_path: Path) -> None:
    with RunRecorder(tmp_path) as recorder:
        _fill(recorder, make_request, 5000)
        assert len(recorder.steps) == len(recorder.requests) == 5000
    starts = pq.read_table(tmp_path / "steps.parquet")["start_s"].to_pylist()
    assert starts == [float(i) for i in range(5000)]


def test_a_fault_in_mid_run_leaves_what_happened(make_request: Maker, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="boom"), RunRecorder(tmp_path) as recorder:
        _fill(recorder, make_request)
        raise KeyError("boom")
    assert pq.read_table(tmp_path / "requests.parquet").num_rows == 3
    recorder.close()  # a second close is nothing


def test_one_file_that_cannot_be_written_costs_no_other(make_request: Maker, tmp_path: Path) -> None:
    (tmp_path / "steps.parquet").mkdir()
    recorder = RunRecorder(tmp_path)
    _fill(recorder, make_request)
    with pytest.raises(OSError, match=r"steps\.parquet"):
        recorder.close()
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert pq.read_table(tmp_path / "transfers.parquet").num_rows == 3


def test_bad_cap() -> None:
    with pytest.raises(ValueError, match="timeline_events is -1, expected 0 or more"):
        RunRecorder(Path("x"), timeline_events=-1)


def test_the_house_of_metrics_is_light() -> None:
    code = "import sys, kvarena.framework.metrics, kvarena.framework.report; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pyarrow", "pandas", "matplotlib", "wandb", "torch", "rich"} & set(loaded)
