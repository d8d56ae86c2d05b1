"""Runs and sweeps from the command line: folders, files, exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvarena.framework.registry import Registry

SIMULATED = ("backend=simulated", "model=llama-3-8b", "hardware=h100", "tracking=none", "workload.limit=3")
Run = Callable[..., tuple[int, str, str]]
FILES = {"summary.json", "requests.parquet", "steps.parquet", "transfers.parquet", "timeline.json", ".hydra"}


def summary(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "summary.json").read_text())
    assert isinstance(content, dict)
    return content


def test_a_single_run_leaves_its_folder_and_prints_its_table(kvarena: Run, tmp_path: Path) -> None:
    status, out, err = kvarena(*SIMULATED)
    assert (status, err) == (0, "")
    (folder,) = (tmp_path / "runs/default").iterdir()
    assert {path.name for path in folder.iterdir()} >= FILES
    run = summary(folder)["run"]
    assert (run["system"], run["status"], run["backend"], run["seed"]) == ("vllm", "ok", "simulated", 0)
    assert run["policies"]["eviction"] == {"name": "lru", "distribution": "kvarena", "version": run["version"]}
    assert "vllm" in out
    assert str(folder.relative_to(tmp_path)) in out


def test_the_same_seed_gives_the_same_simulation(kvarena: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert kvarena(*SIMULATED, f"runs={name}")[0] == 0
    one, other = (summary(next((tmp_path / name / "default").iterdir())) for name in ("a", "b"))
    for content in (one, other):
        del content["run"]["id"], content["run"]["started"]
    assert one == other


def test_a_sweep_compares_its_jobs(kvarena: Run, tmp_path: Path) -> None:
    status, out, err = kvarena("-m", *SIMULATED, "system=vllm_stateless,vllm")
    assert (status, err) == (0, "")
    (folder,) = (tmp_path / "runs/default").iterdir()
    assert {"0", "1", "comparison.md", "comparison.csv", "figures"} <= {path.name for path in folder.iterdir()}
    assert [summary(folder / job)["run"]["system"] for job in "01"] == ["vllm_stateless", "vllm"]
    assert "vllm_stateless" in out
    assert "comparison" not in err


def test_m_may_stand_anywhere(kvarena: Run, tmp_path: Path) -> None:
    assert kvarena("system=vllm", "-m", *SIMULATED, "eviction=lru,fifo")[0] == 0
    (folder,) = (tmp_path / "runs/default").iterdir()
    assert [summary(folder / job)["run"]["system"] for job in "01"] == ["vllm", "vllm+eviction=fifo"]


def broken(*_: object) -> None:
    raise RuntimeError("the engine\nbroke")


def test_a_failed_job_is_recorded_and_the_sweep_goes_on(
    kvarena: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvarena.framework import serve

    real = serve.Server.run
    monkeypatch.setattr(
        serve.Server, "run", lambda self, *rest: (broken if self._parts.seed == 1 else real)(self, *rest)
    )
    status, out, err = kvarena("-m", *SIMULATED, "seed=0,1,2")
    assert status == 1
    (folder,) = (tmp_path / "runs/default").iterdir()
    assert [summary(folder / job)["run"]["status"] for job in "012"] == ["ok", "failed", "ok"]
    assert summary(folder / "1")["run"]["error"] == "RuntimeError: the engine broke"
    assert "Traceback" in (folder / "1/error.txt").read_text()
    assert (folder / "comparison.md").exists()
    assert "RuntimeError: the engine broke" in err
    assert "vllm" in out


def test_a_failed_run_is_status_1(kvarena: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvarena.framework import serve

    monkeypatch.setattr(serve.Server, "run", broken)
    status, _, err = kvarena(*SIMULATED)
    assert (status, err.count("\n")) == (1, 1)
    (folder,) = (tmp_path / "runs/default").iterdir()
    assert summary(folder)["run"]["status"] == "failed"


def test_a_request_that_can_never_fit_counts_as_failed_under_open_load(kvarena: Run, tmp_path: Path) -> None:
    assert kvarena(*SIMULATED, "workload.rate=1", "memory.device_tokens=256")[0] == 0
    (folder,) = (tmp_path / "runs/default").iterdir()
    assert summary(folder)["workload"]["failed"] > 0


def test_help_is_short_and_lists_every_group(kvarena: Run) -> None:
    status, out, _ = kvarena("--help")
    assert status == 0
    assert len(out.splitlines()) <= 50
    assert f"eviction: {', '.join(sorted(Registry.discover().names('eviction')))}" in out
    assert "kvarena -m experiment=quickstart" in out
