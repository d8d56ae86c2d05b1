"""Time the simulator, the whole command on one core: ``python tests/bench/simulator.py``.

With ``KVARENA_DATA`` set: the Mooncake conversation trace, else synthetic chats of as many requests; then synthetic
chats of growing number, whose cost per request must not grow: the exit status is 1 if the longest run's is more than a
tenth above the shortest one's. Seconds are user time of the process, start and tables included.
``--systems --requests 1000000`` runs the chats alone, up to a million requests (goal: 600 s and 4 GiB).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRACE = Path(os.environ.get("KVARENA_DATA", "")) / "mooncake" / "conversation_trace.jsonl"
HERE = ("task=serve", "backend=simulated", "model=llama-3.1-8b", "hardware=h100", "tracking=none")
SYSTEMS = {
    "vllm": (),
    "pensieve": (),
    "cachedattention": ("memory.disk_tokens=20000000",),
}
GROWTH = 1.1  # of the cost of a request from the shortest to the longest run of chats
TURNS = 5.56  # of a synthetic conversation, on average
LOOP = "import time; start = time.process_time(); [i * i for i in range(5_000_000)]; print(time.process_time() - start)"


@dataclass(frozen=True)
class Timed:
    """A run: its summary and the user time of its process."""

    summary: dict[str, Any]
    user_s: float

    @property
    def requests(self) -> int:
        """Requests served and failed."""
        return int(self.summary["workload"]["requests"])


def chats(requests: int) -> tuple[str, ...]:
    """About so many requests of synthetic chats, at a rate that keeps one GPU busy."""
    return ("workload=synthetic_chat", f"workload.limit={max(1, round(requests / TURNS))}", "workload.rate=6")


def timed(*overrides: str) -> Timed:
    """Run ``kvarena OVERRIDES`` in a process of its own, on one core where the system lets us choose."""
    with tempfile.TemporaryDirectory() as folder:
        before_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        command = [sys.executable, "-c", "import sys; from kvarena.framework.cli import main; sys.exit(main())"]
        command += [*HERE, *overrides, f"runs={folder}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, capture_output=True, env=environment, preexec_fn=_on_one_core)
        user_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before_s
        (summary,) = Path(folder).rglob("summary.json")
        return Timed(json.loads(summary.read_text()), user_s)


def _on_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def loop_s() -> float:
    """What a loop of Python takes here now: tells a busy machine from a quiet one."""
    return float(subprocess.run([sys.executable, "-c", LOOP], check=True, capture_output=True, text=True).stdout)


def main() -> int:
    """Print both tables; 1 if the cost per request grows, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000, help="the longest run of chats")
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), choices=list(SYSTEMS))
    chosen = parser.parse_args()
    given = TRACE.is_file()
    workload = ("workload=mooncake", f"workload.path={TRACE}") if given else chats(12_000)
    print(f"{'Mooncake trace' if given else 'synthetic chats'}; a loop takes {loop_s():.2f} s")
    print(f"{'system':18}{'requests':>10}{'M tokens':>10}{'user s':>10}{'requests/s':>12}")
    for system in chosen.systems:
        run = timed(f"system={system}", *SYSTEMS[system], *workload)
        held = run.summary["workload"]
        tokens = sum(held[name] for name in ("prompt_tokens", "history_tokens", "output_tokens")) / 1e6
        print(f"{system:18}{run.requests:10}{tokens:10.0f}{run.user_s:10.1f}{run.requests / run.user_s:12.0f}")
    print(
        f"\nvllm, chats; a loop takes {loop_s():.2f} s\n{'requests':>10}{'user s':>10}{'us per request':>16}{'MiB':>8}"
    )
    start_s, costs_us = timed("system=vllm", *chats(10)).user_s, list[float]()
    for requests in (n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= chosen.requests):
        run = timed("system=vllm", *chats(requests))
        costs_us.append(1e6 * (run.user_s - start_s) / run.requests)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10  # of the largest so far
        print(f"{run.requests:10}{run.user_s:10.1f}{costs_us[-1]:16.0f}{memory:8}", flush=True)
    return int(bool(costs_us) and costs_us[-1] > GROWTH * costs_us[0])


if __name__ == "__main__":
    sys.exit(main())
