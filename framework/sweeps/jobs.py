"""A job's folder in a sweep: what is known of it from outside, whichever process or machine runs it."""

from __future__ import annotations

import contextlib
import json
import shutil
from enum import Enum
from pathlib import Path
from typing import Any

from ..metrics.files import replace_text
from ..paths import read_summary
from .locks import Lock

MARK, LOCK, BEAT, HYDRA = "job.json", ".lock", ".progress", ".hydra"


class JobState(Enum):
    """How far a job has come."""

    NEW = "new"
    BEGUN = "begun"
    FAILED = "failed"
    FINISHED = "finished"


def job_state(folder: Path) -> JobState:
    """The state of the job in ``folder``. What was begun may be running, or half-written and left."""
    status = read_mark(folder).get("status")
    if status == "ok" and read_summary(folder).get("run", {}).get("status") == "ok":
        return JobState.FINISHED
    if status == "failed":
        return JobState.FAILED
    return JobState.BEGUN if (folder / HYDRA).is_dir() else JobState.NEW


def read_mark(folder: Path) -> dict[str, Any]:
    """What :func:`mark` wrote: ``status``, ``seconds``, ``overrides``; empty if there is nothing that can be read."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def mark(folder: Path, *, ok: bool, seconds: float, overrides: tuple[str, ...]) -> None:
    """Say that the job has ended and all of its files are there; ``seconds`` of wall time that it took."""
    status = "ok" if ok else "failed"
    content = {"schema": 1, "status": status, "seconds": round(seconds, 3), "overrides": list(overrides)}
    replace_text(folder / MARK, json.dumps(content) + "\n")


def clear(folder: Path) -> None:
    """Take away what an earlier attempt wrote; the caller holds the job's lock. The config that is to run stays."""
    for path in folder.iterdir():
        if path.name in (HYDRA, LOCK):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def forget(folder: Path) -> None:
    """Make the job :attr:`JobState.NEW` again. Its files stay until it runs: its lock tells whether it still does."""
    (folder / MARK).unlink(missing_ok=True)
    shutil.rmtree(folder / HYDRA, ignore_errors=True)


def job_lock(folder: Path) -> Lock:
    """Held while the job runs. Its process may outlive the one that started the sweep."""
    return Lock(folder / LOCK)
