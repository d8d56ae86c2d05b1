"""``job``: what Hydra calls for each run, in this process or in one that a launcher started."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ..paths import discard
from ..progress import telling
from ..run_info import RunInfo
from ..schema import ConfigError
from ..sweeps import JobState, clear, job_lock, job_state, mark
from ..sweeps.jobs import BEAT
from .composed import is_sweep, plain_config, run_info
from .status import BAD_CONFIG, RUN_FAILED, say


def job(config: DictConfig) -> None:
    """Run one job in the folder that Hydra made for it.

    In a sweep it never raises. A single run ends with SystemExit, which Hydra passes on without a word of its own.
    """
    whole: Any = HydraConfig.instance().cfg
    folder = Path(whole.hydra.runtime.output_dir)
    if is_sweep(whole.hydra):
        number = int(folder.name) if folder.name.isdecimal() else None
        _sweep_job(plain_config(config), run_info(whole.hydra, folder.parent.name, number), folder)
    elif status := _attempt(plain_config(config), folder, run_info(whole.hydra, None, None)):
        raise SystemExit(status)


def _sweep_job(plain: dict[str, Any], info: RunInfo, folder: Path) -> None:
    """Run the job unless it is finished, which a process that was thought to be dead may have done meanwhile."""
    with job_lock(folder):
        if job_state(folder) is JobState.FINISHED:
            return
        clear(folder)
        started_s = time.monotonic()
        with telling(folder / BEAT):
            status = _attempt(plain, folder, info)
        mark(folder, ok=status == 0, seconds=time.monotonic() - started_s, overrides=info.overrides)


def _attempt(plain: dict[str, Any], folder: Path, info: RunInfo) -> int:
    """Run it; say in one line what failed, leave it in the folder, and return the exit status."""
    from ..serve import record_failure  # the engine is loaded when something runs, not for --help
    from ..tasks import run_task

    which = info.label if info.sweep is None else f"{info.job} ({info.label})"
    try:
        summary = run_task(plain, folder, info)
    except ConfigError as error:
        if info.sweep is None:
            discard(folder)
            return say(str(error))
        record_failure(folder, plain, info, str(error))
        return say(f"run {which}: {error}", BAD_CONFIG)
    except KeyboardInterrupt:
        record_failure(folder, plain, info, "interrupted")
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the run that failed
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        record_failure(folder, plain, info, line, traceback.format_exc())
        return say(f"run {which} failed: {line}; see {os.path.relpath(folder / 'error.txt')}", RUN_FAILED)
    if requests := _all_failed(summary):
        advice = "see memory.device_tokens and workload.max_context"
        return say(f"run {which}: none of its {requests} requests could be served; {advice}", RUN_FAILED)
    return 0


def _all_failed(summary: Mapping[str, Any]) -> int:
    """How many requests there were if not one of them was served, else 0."""
    workload = summary.get("workload") or {}
    requests, failed = workload.get("requests"), workload.get("failed")
    return int(requests) if requests and requests == failed else 0
