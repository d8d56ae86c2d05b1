"""Runs that are killed while they fill a persistent disk tier: the next one starts, and answers as if there were none.

``KVARENA_KILLS=100`` kills more often (``-m e2e``).
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kvarena.framework.execution.disk import DiskPages

KILLS = int(os.environ.get("KVARENA_KILLS", "12"))
OVERRIDES = (
    *("system=cachedattention", "backend=torch", "backend.threads=1", "tracking=none", "save_tokens=true"),
    *("model.num_layers=2", "model.hidden_size=64", "workload=rounds", "workload.limit=12", "workload.turns=5"),
    *("workload.prompt_tokens=48", "workload.output_tokens=4", "memory.device_tokens=384", "memory.host_tokens=256"),
)
DISK = ("memory.disk_tokens=2048", "memory.disk_dir=kv", "memory.disk_persist=true")
# Forks a run for each line. What has ended stays a zombie until it is asked for, so that its number is nobody else's.
ZYGOTE = """
import os, sys
import kvarena.framework.execution.disk, kvarena.framework.execution.models, kvarena.framework.execution.torch_executor
import kvarena.framework.execution.torch_links, kvarena.framework.report.figures, kvarena.framework.serve
from kvarena.framework.cli import main
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        sys.argv, status = ["kvarena", *line.split()], 1
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1), os.dup2(log, 2)
        try:
            status = main()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    print(pid, flush=True)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    print("ended", flush=True)
    sys.stdin.readline()
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Runs:
    """Starts runs in processes of their own, forked from one that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.zygote = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            bufsize=0,
        )
        assert self._line() == "ready"

    def start(self, *overrides: str) -> int:
        """The process of ``kvarena overrides``."""
        self._tell(" ".join([*OVERRIDES, *overrides]))
        return int(self._line())

    def has_ended(self) -> bool:
        return bool(select.select([self.zygote.stdout], [], [], 0)[0])

    def end(self) -> int:
        """Wait for it; the signal that it ended by, 0 if it went well."""
        assert self._line() == "ended"
        self._tell("")
        status = int(self._line())
        assert os.WIFSIGNALED(status) or status == 0, (self.folder / "log").read_text()
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0

    def close(self) -> None:
        self.zygote.communicate()

    def _tell(self, line: str) -> None:
        assert self.zygote.stdin is not None
        self.zygote.stdin.write(f"{line}\n".encode())

    def _line(self) -> str:
        assert self.zygote.stdout is not None
        return bytes(self.zygote.stdout.readline()).decode().strip()


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    zygote = Runs(tmp_path)
    yield zygote
    zygote.close()


def replies(runs: Path) -> dict[tuple[int, int], list[int]]:
    (run,) = (runs / "default").iterdir()
    rows = pq.read_table(run / "requests.parquet").to_pylist()
    return {(row["conversation"], row["turn"]): row["output_ids"] for row in rows}


def summary(runs: Path) -> dict[str, Any]:
    (run,) = (runs / "default").iterdir()
    content = json.loads((run / "summary.json").read_text())
    assert isinstance(content, dict)
    return content


def stored(folder: Path) -> int:
    """Pages that the next run will find; they are left as they are."""
    meta = json.loads((folder / "meta.json").read_text())
    options = {"persist": True, "slab_bytes": meta["slab_pages"] * -(-meta["page_bytes"] // 4096) * 4096}
    pages = DiskPages.open(folder, meta["num_pages"], meta["page_bytes"], meta["page_format"], **options)
    found = len(pages.stored()[0])
    assert set(pages.faults) <= {"checksum"}, pages.problems()
    pages.close()
    return found


def entries(folder: Path) -> bytes:
    """What the index says; nothing while no page was ever stored."""
    index = folder / "index.bin"
    return (index.read_bytes() if index.exists() else b"").strip(b"\0")


def kill(runs: Runs, folder: Path, pid: int, rng: random.Random, while_writing: bool) -> bool:
    """Kill the run at any moment, or soon after its first write; False if it has ended before."""
    before = entries(folder)
    if while_writing:
        while entries(folder) == before and not runs.has_ended():
            time.sleep(0.005)
    time.sleep(rng.expovariate(1 / 0.1) if while_writing else rng.uniform(0.0, 1.0))
    os.kill(pid, signal.SIGKILL)
    return runs.end() == signal.SIGKILL


@pytest.mark.timeout(3600)
@pytest.mark.e2e
def test_runs_killed_at_any_moment(runs: Runs, tmp_path: Path) -> None:
    """Every third is let finish: it answers as if there were no disk, with what the killed ones left in it."""
    runs.start("runs=without")
    assert runs.end() == 0
    expected, rng = replies(tmp_path / "without"), random.Random(KILLS)
    folder, killed, found, reused = tmp_path / "kv", 0, list[int](), 0
    for number in range(4 * KILLS):
        pid = runs.start(*DISK, f"runs=killed{number}", f"workload.prompt_tokens={48 - number % 3}")
        killed += kill(runs, folder, pid, rng, while_writing=number % 3 > 0)
        if number % 3 == 2:
            found.append(stored(folder))
            runs.start(*DISK, f"runs=whole{number}")
            assert runs.end() == 0
            assert replies(tmp_path / f"whole{number}") == expected
            cache = summary(tmp_path / f"whole{number}")["cache"]
            assert set(cache["faults"]) <= {"checksum", "key"}
            reused += cache["reused_tokens"]["disk"]
        if killed >= KILLS and number % 3 == 2:
            break
    assert killed >= KILLS
    assert max(found) > 0 and reused > 0, found
