"""The real wandb under faults: a run ends, in time, with what it measured, whatever happens to its tracker."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

_RUN = """
import logging, os, resource, signal, sys, time
from pathlib import Path
from kvarena.framework.metrics import RequestRecord, RunRecorder, StepRecord
from kvarena.framework.metrics import tracking_wandb
from kvarena.framework.metrics.tracking import open_tracker

fault, folder = sys.argv[1], Path(sys.argv[2])
knobs = {"max_rows_per_s": 1e6, "start_timeout_s": 30.0, "finish_timeout_s": 2.0 if fault == "STOP" else 30.0}
tracker = open_tracker("wandb", knobs, {"folder": folder, "backend": "torch"}, {})
steps = [StepRecord(float(i), 1.0, 1, 10, 2, 0, 3, 1, 40) for i in range(100)]
for i, step in enumerate(steps):
    if i == 50 and fault != "none":
        (service,) = tracking_wandb._services()
        if fault == "full":
            resource.prlimit(service, resource.RLIMIT_FSIZE, (100, 100))
        else:
            os.kill(service, getattr(signal, "SIG" + fault))
    tracker.step(step)
began = time.monotonic()
tracker.finish({"latency": {"a": 1.0}})
print(f"waited {time.monotonic() - began:.1f}")
print(f"problem {tracker.problem}")
"""


@pytest.mark.parametrize("fault", ["none", "STOP", "KILL", "full"])
def test_a_faulty_tracker_lets_the_process_end(fault: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _RUN, fault, str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # one of its own
    began_s = time.monotonic()
    path = tmp_path / "log"
    with path.open("w") as log:  # no pipe: a stopped service would hold it open
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=60, check=False)
    took_s, lines = time.monotonic() - began_s, path.read_text()
    assert done.returncode == 0, lines
    assert "Traceback" not in lines
    assert took_s < 40
    if fault != "full":  # wandb says nothing of what it could not write
        problem = lines.partition("problem ")[2].strip()
        assert (problem == "None") == (fault == "none"), lines
        assert lines.count("the run folder is complete without it") == (fault != "none")
