"""``task=calibrate``: measure this machine and model, and leave what the simulator needs to be them."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..backends import open_backend
from ..composition import Parts, TorchBackend, prepare, refusing
from ..execution.hardware import Hardware
from ..execution.model_knobs import HfModel
from ..execution.tables import OperatorTables
from ..metrics import write_summary
from ..metrics.files import replace_text
from ..metrics.summary import SCHEMA
from ..progress import WorkProgress
from ..run_info import RunInfo
from ..schema import ConfigError
from ..serve import describe
from ..task_knobs import CalibrateTask
from .checks import Check, check_tables
from .figure import draw_calibration
from .machine import measured_hardware, write_hardware, write_model
from .measure import Measured, measure_all, one_tier
from .presets import shape_preset
from .result import Calibration
from .simulation import simulated

TABLES = "tables"
FILE_WIDTH = 120


def calibrate(config: Mapping[str, Any], folder: Path, info: RunInfo) -> dict[str, Any]:
    """Run ``config`` into ``folder`` and return the content of its ``summary.json``.

    Raises
    ------
    ConfigError
        If the backend computes nothing, the output cannot be written, or the model cannot be run.
    """
    parts = prepare(config, info)
    task = parts.task
    assert isinstance(task, CalibrateTask)
    require_torch(parts, "calibrate")
    output = writable(Path(task.output).expanduser(), "task.output") if task.output else folder
    with WorkProgress("calibrate") as progress, refusing():
        measured, tables, memory = measure_all(parts, task.limits, task.seconds, folder / "disk", progress)
    tables.save(output / TABLES)
    hardware = measured_hardware(sized(parts.hardware, memory), task.hardware, tables, measured.memory_bytes_per_s)
    write_hardware(hardware, output, tables.source)
    result = Calibration(measured, tables, tuple(_checks(parts, hardware, output / TABLES, measured, tables)))
    summary = _write(result, folder, {**describe(config, info, parts), "model": tables.shape.name})
    _print(result, usage(parts, tables, output, task.hardware))
    return summary


def require_torch(parts: Parts, task: str) -> None:
    """Refuse a backend that computes nothing.

    Raises
    ------
    ConfigError
        Naming it.
    """
    if not isinstance(parts.backend, TorchBackend):
        raise ConfigError(f"task={task} measures a model that runs: choose backend=torch, found backend=simulated")


def writable(folder: Path, what: str) -> Path:
    """Make ``folder`` and try to write in it.

    Raises
    ------
    ConfigError
        If that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ConfigError(f"{what} is {str(folder)!r}, which cannot be written: {error.strerror or error}") from error


def sized(base: Hardware, memory: tuple[int, int]) -> Hardware:
    """``base`` with so many bytes of device and host memory."""
    return replace(base, memory_bytes=memory[0], host_memory_bytes=memory[1])


def _checks(parts: Parts, hardware: Hardware, folder: Path, measured: Measured, tables: OperatorTables) -> list[Check]:
    own = one_tier(parts)
    backend = open_backend(simulated(own, tables.shape, hardware, folder))
    return check_tables(backend.executor, measured.times_s, measured.engine)


def _write(result: Calibration, folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    about = {**run, "workload": "calibration", "task": "calibrate", "saturated": None}
    summary = {"schema": SCHEMA, "run": about, "calibration": result.section()}
    draw_calibration(result.tables, result.checks, folder / "figures" / "calibration.png")
    replace_text(folder / "calibration.md", result.markdown())
    write_summary(folder, summary)
    return summary


def usage(parts: Parts, tables: OperatorTables, output: Path, hardware: str) -> list[str]:
    """The overrides with which a run uses what was measured; writes the preset of a model that has none."""
    model = str(parts.model_knobs["name"])
    if isinstance(parts.model, HfModel):
        model = f"{model}-{tables.shape.name}"
        write_model(shape_preset(tables.shape, model), output)
    where = shlex.quote(os.path.relpath(output))
    quoted = shlex.quote(f"backend.tables={os.path.relpath(output / TABLES)}")
    return [f"kvarena --config-dir {where} backend=simulated model={model} hardware={hardware} {quoted}"]


def _print(result: Calibration, lines: list[str]) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    console.print(result.rich())
    for problem in result.measured.problems:
        console.print(problem, style="yellow", markup=False)
    console.print("simulate this machine:")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True, highlight=False, markup=False)
