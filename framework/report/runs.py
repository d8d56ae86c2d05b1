"""Run folders, read back: ``summary.json`` and ``requests.parquet``, nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..policy import FAMILIES

SCHEMA = 1
SETTING = ("workload", "memory", "hardware", "model", "backend", "task")
KINDS = {"torch": "measured", "simulated": "simulated"}


class RunError(ValueError):
    """A folder that holds no readable run. The message names the folder and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What runs must share to stand in one table. ``kind``: measured or simulated; ``knobs``: as given at the start."""

    kind: str
    workload: str
    model: str
    hardware: str
    knobs: str = ""

    def __str__(self) -> str:
        return f"{self.workload}, {self.model} on {self.hardware} ({self.kind}){self.knobs and ', ' + self.knobs}"

    def without(self, key: str) -> Setting:
        """The setting of all runs that differ from this one in the knob ``key`` alone."""
        return replace(self, knobs=" ".join(word for word in self.knobs.split() if not word.startswith(f"{key}=")))


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder and its summary."""

    folder: Path
    summary: dict[str, Any]

    @property
    def info(self) -> dict[str, Any]:
        """The ``run`` section."""
        return dict(self.summary["run"])

    @property
    def setting(self) -> Setting:
        """Which table it belongs to."""
        info = self.info
        kind = KINDS.get(info["backend"], str(info["backend"]))
        workload, model, hardware = (str(info[key]) for key in ("workload", "model", "hardware"))
        return Setting(kind, workload, model, hardware, " ".join(self._knobs(SETTING)))

    @property
    def label(self) -> str:
        """The system, with the knobs of policies that the command line set."""
        return " ".join([str(self.info["system"]), *self._knobs(FAMILIES)])

    def _knobs(self, groups: Sequence[str]) -> list[str]:
        given = self.info.get("overrides", [])
        return sorted(word for word in given if word.split(".")[0] in groups and ".path=" not in word)

    @property
    def oracle(self) -> bool:
        """True if any of its policies saw the future."""
        return any(policy.get("oracle", False) for policy in self.info.get("policies", {}).values())

    @property
    def ok(self) -> bool:
        """True if the run came to its end."""
        return bool(self.info["status"] == "ok")

    def figure(self, *path: str) -> float | None:
        """The number at ``path`` of the summary, or None where it was not measured."""
        value: Any = self.summary
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return None if value is None else float(value)

    def knob(self, key: str) -> str | None:
        """What the command line set ``key`` to, or None where it did not."""
        words = [word for word in self.info.get("overrides", []) if word.startswith(f"{key}=")]
        return words[-1].partition("=")[2] if words else None

    def config(self) -> dict[str, Any]:
        """What the run was configured with, as Hydra wrote it down; empty where that is not there."""
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            found = yaml.load((self.folder / ".hydra/config.yaml").read_text(encoding="utf-8"), loader)
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return found if isinstance(found, dict) else {}

    def steps(self, columns: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Columns of ``steps.parquet``, those that it has.

        Raises
        ------
        RunError
            If the file is missing or not readable.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / "steps.parquet"
        try:
            with pq.ParquetFile(path) as file:
                table = file.read(columns=[name for name in columns if name in file.schema_arrow.names])
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{path}: not readable: {error}") from error
        return {name: table[name].to_numpy() for name in table.column_names}

    def requests(self, columns: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Columns of the measured requests (no warm-up, none that failed) of ``requests.parquet``.

        Raises
        ------
        RunError
            If the file is missing or not readable.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / "requests.parquet"
        try:
            table = pq.read_table(path, columns=[*columns, "status", "warmup"])
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{path}: not readable: {error}") from error
        kept = (table["status"].to_numpy() == "ok") & ~table["warmup"].to_numpy()
        return {name: table[name].to_numpy()[kept] for name in columns}

    def ttft_s(self) -> NDArray[np.float64]:
        """Time to first token of each measured request, seconds [n]."""
        columns = self.requests(["arrival_s", "first_token_s"])
        return np.asarray(columns["first_token_s"] - columns["arrival_s"], np.float64)


def is_served(run: Run) -> bool:
    """``run`` served requests, or failed before it told: runs of other tasks have reports of their own."""
    return "latency" in run.summary or not run.ok


def load_run(folder: Path) -> Run:
    """Read the run in ``folder``.

    Raises
    ------
    RunError
        If there is no summary, or one that cannot be read.
    """
    path = Path(folder) / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{folder}: no summary.json: the run did not finish") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not readable: {error}") from error
    found = summary.get("schema") if isinstance(summary, dict) else None
    if found != SCHEMA or not isinstance(summary.get("run"), dict):
        raise RunError(f"{path}: schema {found!r}, expected {SCHEMA}")
    return Run(Path(folder), summary)
