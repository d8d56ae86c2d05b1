"""``task=fidelity``: the same workload on this machine and simulated, system by system."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..calibrate.task import FILE_WIDTH, require_torch
from ..composition import prepare, refusing
from ..metrics import write_summary
from ..metrics.files import replace_text
from ..metrics.summary import SCHEMA
from ..opening import check_workload
from ..paths import read_summary
from ..progress import WorkProgress
from ..run_info import RunInfo
from ..serve import describe
from ..task_knobs import FidelityTask
from .calibration import Calibrator
from .compare import Row, compare_system, order_pairs
from .figure import draw_fidelity
from .result import Fidelity, vllm_table
from .running import Contestant, run_once
from .systems import refuse_families, system_config, system_info
from .vllm import compare_vllm, find_vllm

RUN_STEPS = 40  # batches that count as much as a run for the progress bar


def fidelity(config: Mapping[str, Any], folder: Path, info: RunInfo) -> dict[str, Any]:
    """Run ``config`` into ``folder`` and return the content of its ``summary.json``.

    ``real/<system>/<round>``, ``simulated/<system>`` and ``tables/<system>`` hold the runs and what the simulations
    were told.

    Raises
    ------
    ConfigError
        If the config cannot run.
    """
    parts = prepare(config, info)
    task = parts.task
    assert isinstance(task, FidelityTask)
    refuse_families(info)
    measured = find_vllm(Path(task.vllm).expanduser()) if task.vllm is not None else None
    contestants = [_contestant(config, info, system) for system in task.systems]
    vllm = compare_vllm(*measured, folder) if measured is not None else None
    rows = _compare(contestants, task, folder) if contestants else []
    found = Fidelity(tuple(rows), tuple(order_pairs(rows)), task.rounds, _about(folder, contestants), vllm)
    return _write(found, folder, describe(config, info, parts))


def _about(folder: Path, contestants: list[Contestant]) -> str:
    """The runs that were compared."""
    if not contestants:
        return ""
    summary = read_summary(folder / "simulated" / contestants[0].name)
    run, workload = summary["run"], summary["workload"]
    return f"{run['workload']}, {run['model']}, {workload['requests']} requests, seed {run['seed']}"


def _contestant(config: Mapping[str, Any], info: RunInfo, system: str) -> Contestant:
    own, about = system_config(config, system), system_info(info, system)
    parts = prepare(own, about)
    require_torch(parts, "fidelity")
    check_workload(parts)
    return Contestant(own, about, parts)


def _compare(contestants: list[Contestant], task: FidelityTask, folder: Path) -> list[Row]:
    """All real runs in turn, batches and engines timed in between, then the simulations."""
    with WorkProgress("fidelity") as progress:
        with refusing():
            calibrator = Calibrator([each.parts for each in contestants], task.limits, folder)
        try:
            real = _real_runs(contestants, calibrator, task, folder, progress)
            simulated = _simulations(contestants, calibrator, folder, progress)
        finally:
            calibrator.close()
    return [
        row
        for number, each in enumerate(contestants)
        for row in compare_system(each.name, real[number], simulated[number])
    ]


def _real_runs(
    contestants: list[Contestant], calibrator: Calibrator, task: FidelityTask, folder: Path, progress: WorkProgress
) -> list[list[dict[str, Any]]]:
    """By system, then by round."""
    real: list[list[dict[str, Any]]] = [[] for _ in contestants]
    turns = task.rounds * len(contestants)
    progress.plan(calibrator.batches / RUN_STEPS + turns + len(contestants))
    progress.note("warm-up")
    calibrator.warm_up(lambda: progress.advance(1 / RUN_STEPS))
    for turn in range(task.rounds):
        calibrator.links()
        for number, each in enumerate(contestants):
            progress.note(f"round {turn + 1}/{task.rounds}: {each.name}")
            calibrator.slice(task.seconds / turns)
            calibrator.engine(number, each.parts)
            real[number].append(run_once(each, each.parts, folder / "real" / each.name / str(turn)))
            progress.advance()
    calibrator.complete()
    return real


def _simulations(
    contestants: list[Contestant], calibrator: Calibrator, folder: Path, progress: WorkProgress
) -> list[dict[str, Any]]:
    found = []
    for number, each in enumerate(contestants):
        progress.note(f"simulating {each.name}")
        parts = calibrator.simulation(number, each.parts, folder / "tables" / each.name)
        found.append(run_once(each, parts, folder / "simulated" / each.name))
        progress.advance()
    return found


def _write(found: Fidelity, folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    about = {**run, "workload": "fidelity", "task": "fidelity", "saturated": None}
    summary = {"schema": SCHEMA, "run": about, "fidelity": found.section()}
    if found.rows:
        draw_fidelity(found.rows, found.about, folder / "figures" / "fidelity.png")
        replace_text(folder / "fidelity.csv", found.csv())
    replace_text(folder / "fidelity.md", found.markdown())
    write_summary(folder, summary)
    _print(found)
    return summary


def _print(found: Fidelity) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    if found.rows:
        console.print(found.rich())
    if found.vllm is not None:
        console.print(vllm_table(found.vllm))
