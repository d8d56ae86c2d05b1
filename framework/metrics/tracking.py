"""Mirrors of a run in an experiment tracker, which is imported only when it is chosen.

A tracker may fail or hang; the run neither stops nor waits for it. The run folder stays the source of truth.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ..schema import ConfigError, build
from .records import RequestRecord, StepRecord
from .tracking_rows import RowSampler
from .tracking_wandb import kill_service, log_figures, log_files, log_summary, open_run

_LOG = logging.getLogger(__name__)
_GAVE_UP = "kvarena-wandb that does not answer"


class Tracker(Protocol):
    """Receives what a run does. No method raises or waits longer than its bound.

    ``errors`` counts what the tracker lost or refused; ``problem`` is the first of it in one line, or None.
    """

    @property
    def errors(self) -> int: ...
    @property
    def problem(self) -> str | None: ...

    def step(self, record: StepRecord) -> None:
        """An iteration was executed."""
        ...

    def request(self, record: RequestRecord) -> None:
        """A request finished or failed."""
        ...

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int = 0) -> None:
        """The run ended; ``summary`` is None if it has none. Waits a bounded time for the tracker to write."""
        ...


@dataclass(frozen=True, slots=True)
class NoTracker:
    """``tracking=none``."""

    errors: int = 0
    problem: str | None = None

    def step(self, record: StepRecord) -> None:
        """Nothing."""

    def request(self, record: RequestRecord) -> None:
        """Nothing."""

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int = 0) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class NoneKnobs:
    """``tracking=none`` has no knobs."""


@dataclass(frozen=True, slots=True)
class WandbKnobs:
    """Knobs of ``tracking=wandb``.

    Attributes
    ----------
    mode: ``offline`` writes into the run folder only; ``online`` sends.
    project, entity: where runs go; entity null is the account's default.
    group: null: the sweep's name.
    tags: added to system, backend, workload, model and hardware.
    max_rows_per_s: most rows of step metrics per second of wall time; steps in between are added up.
    max_rows: most rows in all.
    figures: draw the figures of a single run and send them; those of a sweep are in its report.
    files: send tables, timeline and summary as an artifact.
    start_timeout_s, finish_timeout_s: how long a run waits at its start and its end before it goes on without.
    """

    mode: Literal["offline", "online"] = "offline"
    project: str = "kvarena"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    max_rows_per_s: float = 10.0
    max_rows: int = 5000
    figures: bool = True
    files: bool = True
    start_timeout_s: float = 20.0
    finish_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_rows_per_s", "max_rows", "start_timeout_s", "finish_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")


def open_tracker(
    name: str,
    knobs: Mapping[str, Any],
    run_info: Mapping[str, Any],
    config: Mapping[str, Any],
    draw: Callable[[], object] | None = None,
) -> Tracker:
    """Open the tracker ``name`` for one run.

    Parameters
    ----------
    knobs: the option's knobs, without ``name``.
    run_info: the keys of summary.json's ``run`` section, and ``folder`` (the run's, required by wandb), ``sweep``
        (the group), ``task`` (the job type).
    config: the run's whole resolved config, plain values.
    draw: draws the run's figures into its folder when all else is written; None: there are none to draw.

    Raises
    ------
    ConfigError
        For an unknown tracker or knob.
    """
    if name == "none":
        build(NoneKnobs, knobs, "tracking=none")
        return NoTracker()
    if name == "wandb":
        return WandbTracker(build(WandbKnobs, knobs, "tracking=wandb"), run_info, config, draw)
    raise ConfigError(f"unknown tracking {name!r}; expected none or wandb")


class WandbTracker:
    """One W&B run, fed by a thread of its own through a bounded queue; what does not fit is dropped and counted.

    A simulated run does not wait for it to open; a measured one does, so that its times are not disturbed. Once it has
    not answered, later runs of this process do without.
    """

    def __init__(
        self,
        knobs: WandbKnobs,
        run_info: Mapping[str, Any],
        config: Mapping[str, Any],
        draw: Callable[[], object] | None = None,
    ) -> None:
        self.errors = 0
        self.problem: str | None = None
        self._knobs = knobs
        self._folder = Path(run_info["folder"])
        self._draw = draw if knobs.figures else None
        self._jobs: queue.Queue[Callable[[Any], None] | None] = queue.Queue(maxsize=256)
        self._started = threading.Event()
        self._start_by_s = time.monotonic() + knobs.start_timeout_s
        self._sampler = RowSampler(knobs.max_rows_per_s, knobs.max_rows)
        self._abandoned = any(thread.name == _GAVE_UP for thread in threading.enumerate())
        arguments = _init_arguments(knobs, run_info, config)
        self._thread = threading.Thread(target=self._work, args=(arguments,), name="kvarena-wandb", daemon=True)
        if self._abandoned:
            self._fail("it did not answer in an earlier run; this one goes on without it")
            return
        self._thread.start()
        if run_info.get("backend") != "simulated":
            self._await_start()

    def step(self, record: StepRecord) -> None:
        """Add the iteration to the current row; hand the row over when it is due."""
        row = self._sampler.step(record)
        if row is not None:
            self._put(lambda run: run.log(row))

    def request(self, record: RequestRecord) -> None:
        """Add the request to the current row."""
        self._sampler.request(record)

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int = 0) -> None:
        """Send the last row, the summary, tables, figures and files, and wait at most ``finish_timeout_s``."""
        row = self._sampler.rest()
        if row is not None:
            self._put(lambda run: run.log(row))
        if summary is not None:
            self._put(lambda run: log_summary(run, summary))
            self._put_files()
        self._put(lambda run: run.finish(exit_code=exit_code))
        self._put(None, wait_s=1.0)
        self._await_end()

    def _put_files(self) -> None:
        if self._draw is not None and not self._abandoned:
            try:
                self._draw()
            except Exception as error:  # noqa: BLE001  figures are drawn again with the report, which says so
                self._fail(f"no figures: {type(error).__name__}: {error}")
            self._put(lambda run: log_figures(run, self._folder))
        if self._knobs.files:
            self._put(lambda run: log_files(run, self._folder))

    def _await_start(self) -> None:
        """Wait for the run to open, if there is time left for that."""
        if not self._abandoned and not self._started.wait(max(0.0, self._start_by_s - time.monotonic())):
            self._abandon(
                f"no answer within {self._knobs.start_timeout_s:g} s at the start; the run goes on without it"
            )

    def _await_end(self) -> None:
        self._await_start()
        if not self._abandoned:
            self._thread.join(self._knobs.finish_timeout_s)
            if self._thread.is_alive():
                self._abandon(f"no answer within {self._knobs.finish_timeout_s:g} s at the end")
        if self.errors:
            kill_service()

    def _work(self, arguments: dict[str, Any]) -> None:
        """The thread: open the run, then do one job after the other; a job that fails is counted."""
        try:
            run = open_run(arguments, self._knobs.start_timeout_s, self._knobs.finish_timeout_s)
        except BaseException as error:  # noqa: BLE001  whatever a tracker does, the run goes on
            self._fail(f"{type(error).__name__}: {error}")
            self._abandoned = True
            return
        finally:
            self._started.set()
        while (job := self._jobs.get()) is not None and not self._abandoned:
            try:
                job(run)
            except BaseException as error:  # noqa: BLE001
                self._fail(f"{type(error).__name__}: {error}")

    def _put(self, job: Callable[[Any], None] | None, wait_s: float = 0.0) -> None:
        if self._abandoned:
            return
        try:
            self._jobs.put(job, block=wait_s > 0, timeout=wait_s or None)
        except queue.Full:
            self._fail("it does not keep up; rows were dropped")

    def _abandon(self, problem: str) -> None:
        self._abandoned = True
        self._thread.name = _GAVE_UP
        with contextlib.suppress(queue.Full):
            self._jobs.put_nowait(None)  # should it wake up after all
        self._fail(problem)

    def _fail(self, problem: str) -> None:
        """Count; the first time, say so."""
        self.errors += 1
        if self.problem is None:
            self.problem = " ".join(problem.split())
            _LOG.warning("W&B: %s (the run folder is complete without it)", self.problem)


def _init_arguments(knobs: WandbKnobs, run_info: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    described = [run_info.get(key) for key in ("system", "backend", "workload", "model", "hardware")]
    return {
        "dir": str(Path(run_info["folder"])),
        "project": knobs.project,
        "entity": knobs.entity,
        "mode": knobs.mode,
        "group": knobs.group or run_info.get("sweep"),
        "job_type": str(run_info.get("task", "serve")),
        "name": f"{run_info.get('system')}-seed{run_info.get('seed')}",
        "tags": list(dict.fromkeys(str(tag)[:64] for tag in [*described, *knobs.tags] if tag)),
        "config": {"run": {key: value for key, value in run_info.items() if key != "folder"}, **config},
    }
