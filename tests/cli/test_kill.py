"""Sweeps that are killed, or interrupted from the keyboard, and resumed: whole processes, as a user has them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = """
import sys
from kvarena.framework.cli import main, sweeper
sweeper.code_version = lambda: "one"  # the sources may be edited while this test runs
sys.exit(main())
"""
COMMAND = (sys.executable, "-c", PROGRAM, "-m")
SWEEP = (
    *("backend=simulated", "model=llama-3-8b", "hardware=h100", "tracking=none"),
    *("workload.limit=60", "workload.rate=4", "seed=range(5)"),
)
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
Start = Callable[..., subprocess.Popen[str]]

pytestmark = pytest.mark.e2e


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the sweep in a process group of its own, which ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(
                [*COMMAND, *SWEEP, *words], cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, start_new_session=True
            )
        )
        return started[-1]

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def marks(base: Path) -> dict[str, str]:
    """The id of each finished job, by its folder."""
    done = [path.parent for path in base.glob("runs/default/*/*/job.json")]
    return {str(job): json.loads((job / "summary.json").read_text())["run"]["id"] for job in done}


def wait_for(base: Path, jobs: int, process: subprocess.Popen[str]) -> None:
    while len(list(base.glob("runs/default/*/*/job.json"))) < jobs:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.mark.parametrize("words", [(), JOBLIB], ids=["serial", "joblib"])
def test_a_killed_sweep_is_resumed_where_it_stopped(start: Start, tmp_path: Path, words: tuple[str, ...]) -> None:
    killed = start(*words)
    wait_for(tmp_path, 2, killed)
    os.kill(killed.pid, signal.SIGKILL)  # its workers may go on for a while
    killed.wait()
    before = marks(tmp_path)
    again = start(*words)
    out, err = again.communicate(timeout=120)
    assert (again.returncode, "resumes runs/default/" in err) == (0, True), err
    (folder,) = (tmp_path / "runs/default").iterdir()
    after = marks(tmp_path)
    assert {path.name for path in folder.iterdir()} >= {"0", "1", "2", "3", "4", "comparison.md"}
    assert len(after) == 5 and before.items() <= after.items()
    assert json.loads((folder / "sweep.json").read_text())["status"] == "finished"
    assert "seeds 0, 1, 2, 3, 4" in " ".join(out.split())


def test_ctrl_c_compares_what_has_finished_and_ends_with_130(start: Start, tmp_path: Path) -> None:
    stopped = start(*JOBLIB)
    wait_for(tmp_path, 2, stopped)
    os.killpg(stopped.pid, signal.SIGINT)
    _, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, err
    assert "the same command goes on with the rest" in err.splitlines()[-1]
    assert "Traceback" not in err
    (folder,) = (tmp_path / "runs/default").iterdir()
    assert (folder / "comparison.md").exists()


def test_two_at_once_never_share_a_folder(start: Start, tmp_path: Path) -> None:
    both = [start(), start()]
    for process in both:
        assert process.communicate(timeout=120) and process.returncode == 0
    folders = list((tmp_path / "runs/default").iterdir())
    assert len(folders) == 2
    assert all(len(list(folder.glob("*/job.json"))) == 5 for folder in folders)
