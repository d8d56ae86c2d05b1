"""What ``kvarena task=...`` runs: each task's code is loaded when it is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .run_info import RunInfo

Runner = Callable[[Mapping[str, Any], Path, RunInfo], dict[str, Any]]


def run_task(config: Mapping[str, Any], folder: Path, info: RunInfo) -> dict[str, Any]:
    """Run the task that ``config`` chooses into ``folder`` and return the content of its ``summary.json``.

    Raises
    ------
    ConfigError
        If the config cannot run; nothing was computed or written then.
    """
    name = dict(config.get("task") or {}).get("name")
    return RUNNERS.get(str(name), _serve)(config, folder, info)  # an unknown one is refused by the check of the config


def _serve(config: Mapping[str, Any], folder: Path, info: RunInfo) -> dict[str, Any]:
    from .serve import serve

    return serve(config, folder, info)


def _replay(config: Mapping[str, Any], folder: Path, info: RunInfo) -> dict[str, Any]:
    from .replay.task import replay

    return replay(config, folder, info)


def _calibrate(config: Mapping[str, Any], folder: Path, info: RunInfo) -> dict[str, Any]:
    from .calibrate.task import calibrate

    return calibrate(config, folder, info)


def _fidelity(config: Mapping[str, Any], folder: Path, info: RunInfo) -> dict[str, Any]:
    from .fidelity.task import fidelity

    return fidelity(config, folder, info)


def _quality(config: Mapping[str, Any], folder: Path, info: RunInfo) -> dict[str, Any]:
    from .quality.task import quality

    return quality(config, folder, info)


RUNNERS: Mapping[str, Runner] = {
    "serve": _serve,
    "replay": _replay,
    "calibrate": _calibrate,
    "fidelity": _fidelity,
    "quality": _quality,
}
