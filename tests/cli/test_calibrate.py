"""``task=calibrate`` from the command line: what it leaves runs, and what is wrong is said in one line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
QUICK = (
    *("task=calibrate", "tracking=none", "task.seconds=0.2", "backend.threads=1", "memory.device_tokens=4096"),
    *("task.limits.tokens=48", "task.limits.context=64", "task.limits.sequences=2"),
    *("model.num_layers=2", "model.hidden_size=64", "model.intermediate_size=128", "model.vocab_size=512"),
    *("model.num_heads=4", "model.num_kv_heads=2"),
)
MODEL = [word for word in QUICK if word.startswith("model.")]


def test_a_calibration_leaves_what_the_simulator_takes(kvarena: Run, tmp_path: Path) -> None:
    status, out, err = kvarena(*QUICK)
    assert status == 0, err
    (folder,) = (tmp_path / "runs/default").iterdir()
    assert {path.name for path in folder.iterdir()} >= {
        "tables",
        "hardware",
        "calibration.md",
        "figures",
        "summary.json",
    }
    assert (folder / "figures/calibration.png").stat().st_size > 10_000
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["run"]["task"], summary["run"]["status"]) == ("calibrate", "ok")
    found = summary["calibration"]
    assert found["engine"]["iterations"] > 20
    assert found["links"]["host_bytes_per_s"] > 0 and found["links"]["disk_read_bytes_per_s"] > 0
    assert {check["error"] > -1 for check in found["checks"]} == {True}
    assert not (folder / "comparison.md").exists()
    (usage,) = [line for line in out.splitlines() if line.strip().startswith("kvarena --config-dir")]
    words = shlex.split(usage)[1:]
    status, out, err = kvarena(*words, *MODEL, "tracking=none", "workload.limit=2")
    assert (status, err) == (0, "")
    runs = sorted((tmp_path / "runs/default").iterdir())
    simulated = json.loads((runs[-1] / "summary.json").read_text())
    assert simulated["run"]["hardware"] == "calibrated"
    assert "vllm" in out


def test_output_may_be_any_folder(kvarena: Run, tmp_path: Path) -> None:
    status, out, err = kvarena(*QUICK, "task.output=machines/here", "task.hardware=laptop")
    assert status == 0, err
    assert (tmp_path / "machines/here/hardware/laptop.yaml").is_file()
    assert (tmp_path / "machines/here/tables/operators.parquet").is_file()
    assert "--config-dir machines/here" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["backend=simulated"], "task=calibrate measures a model that runs: choose backend=torch"),
        (["task.output=/proc/nowhere"], "task.output is '/proc/nowhere', which cannot be written"),
        (["task.output=''"], "output is ''"),
        (["task.seconds=0"], "seconds is 0.0, expected more than 0"),
        (["task.hardware=a/b"], "hardware is 'a/b'"),
        (["task.limits.tokens=3"], "tokens is 3, expected at least 32"),
        (["model=llama-3-8b"], "model=llama-3-8b: kind is 'shape'"),
        (["backend.device=cuda:99"], "cuda:99"),
    ],
)
def test_what_is_wrong_is_one_line(kvarena: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    given = [word for word in QUICK if not (word.startswith("backend.") and arguments == ["backend=simulated"])]
    if arguments[0].startswith("model="):
        given = [word for word in given if not word.startswith("model.")]
    status, _, err = kvarena(*given, *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
