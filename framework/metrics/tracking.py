"""Mirrors of a run in an experiment tracker. The only module that imports wandb, and only when it is chosen.

A tracker may fail or hang; the run neither stops nor waits for it. The run folder stays the source of truth.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ..schema import ConfigError, build
from .records import RequestRecord, StepRecord

_LOG = logging.getLogger(__name__)
_PERCENTILE_COLUMNS = ("metric", "count", "mean", "p50", "p90", "p95", "p99", "max")


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
    tags: added to backend, workload, model and hardware.
    max_rows_per_s: most rows of step metrics per second of wall time; steps in between are added up.
    max_rows: most rows in all.
    start_timeout_s, finish_timeout_s: how long a run waits at its start and its end before it goes on without.
    """

    mode: Literal["offline", "online"] = "offline"
    project: str = "kvarena"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    max_rows_per_s: float = 10.0
    max_rows: int = 5000
    start_timeout_s: float = 20.0
    finish_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_rows_per_s", "max_rows", "start_timeout_s", "finish_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")


def open_tracker(
    name: str, knobs: Mapping[str, Any], run_info: Mapping[str, Any], config: Mapping[str, Any]
) -> Tracker:
    """Open the tracker ``name`` for one run.

    Parameters
    ----------
    knobs: the option's knobs, without ``name``.
    run_info: the keys of summary.json's ``run`` section, and ``folder`` (the run's, required by wandb), ``sweep``
        (the group), ``task`` (the job type).
    config: the run's whole resolved config, plain values.

    Raises
    ------
    ConfigError
        For an unknown tracker or knob.
    """
    if name == "none":
        build(NoneKnobs, knobs, "tracking=none")
        return NoTracker()
    if name == "wandb":
        return WandbTracker(build(WandbKnobs, knobs, "tracking=wandb"), run_info, config)
    raise ConfigError(f"unknown tracking {name!r}; expected none or wandb")


class WandbTracker:
    """One W&B run, fed by a thread of its own through a bounded queue; what does not fit is dropped and counted."""

    def __init__(self, knobs: WandbKnobs, run_info: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        self.errors = 0
        self.problem: str | None = None
        self._knobs = knobs
        self._jobs: queue.Queue[Callable[[Any], None] | None] = queue.Queue(maxsize=256)
        self._started = threading.Event()
        self._abandoned = False
        self._sampler = _Sampler(knobs)
        settings = _init_arguments(knobs, run_info, config)
        self._thread = threading.Thread(target=self._work, args=(settings,), name="kvarena-wandb", daemon=True)
        self._thread.start()
        if not self._started.wait(knobs.start_timeout_s):
            self._abandon(f"no answer within {knobs.start_timeout_s:g} s at the start; the run goes on without it")

    def step(self, record: StepRecord) -> None:
        """Add the iteration to the current row; hand the row over when it is due."""
        row = self._sampler.step(record)
        if row is not None:
            self._put(lambda run: run.log(row))

    def request(self, record: RequestRecord) -> None:
        """Add the request to the current row."""
        self._sampler.request(record)

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int = 0) -> None:
        """Send the last row, the summary and the table of percentiles, and wait at most ``finish_timeout_s``."""
        row = self._sampler.rest()
        if row is not None:
            self._put(lambda run: run.log(row))
        if summary is not None:
            self._put(lambda run: _log_summary(run, summary))
        self._put(lambda run: run.finish(exit_code=exit_code))
        self._put(None, wait_s=1.0)
        self._thread.join(0.0 if self._abandoned else self._knobs.finish_timeout_s)
        if self._thread.is_alive() and not self._abandoned:
            self._abandon(f"no answer within {self._knobs.finish_timeout_s:g} s at the end")

    def _work(self, settings: dict[str, Any]) -> None:
        """The thread: open the run, then do one job after the other; a job that fails is counted."""
        try:
            run = _init(settings)
        except BaseException as error:  # noqa: BLE001  whatever a tracker does, the run goes on
            self._fail(f"{type(error).__name__}: {error}")
            self._abandoned = True
            return
        finally:
            self._started.set()
        while (job := self._jobs.get()) is not None:
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
        self._fail(problem)

    def _fail(self, problem: str) -> None:
        """Count; the first time, say so."""
        self.errors += 1
        if self.problem is None:
            self.problem = " ".join(problem.split())
            _LOG.warning("W&B: %s (the run folder is complete without it)", self.problem)


class _Sampler:
    """Adds steps up to rows at a bounded rate."""

    _SUMS = ("n_steps", "prefill_tokens", "decode_tokens", "recompute_tokens", "stall_s", "duration_s")
    _LEVELS = ("running", "waiting", "device_pages", "host_pages", "disk_pages")

    def __init__(self, knobs: WandbKnobs) -> None:
        self._interval_s = 1.0 / knobs.max_rows_per_s
        self._rows_left = knobs.max_rows
        self._due_s = time.monotonic()
        self._sums = dict.fromkeys(self._SUMS, 0.0)
        self._last: StepRecord | None = None
        self._completed = 0
        self._failed = 0
        self._ttfts_s: list[float] = []

    def step(self, record: StepRecord) -> dict[str, float] | None:
        """The row that is due now, if one is."""
        self._last = record
        sums = self._sums
        for name in self._SUMS:
            sums[name] += getattr(record, name)
        now_s = time.monotonic()
        if now_s < self._due_s or self._rows_left <= 1:
            return None
        self._due_s = now_s + self._interval_s
        return self.rest()

    def request(self, record: RequestRecord) -> None:
        if record.status == "ok":
            self._completed += 1
            self._ttfts_s.append(record.first_token_s - record.arrival_s)
        else:
            self._failed += 1

    def rest(self) -> dict[str, float] | None:
        """What has been added up since the last row."""
        if self._last is None:
            return None
        last, sums, ttfts_s = self._last, self._sums, self._ttfts_s
        row = {f"step/{name}": value for name, value in sums.items()}
        row |= {f"step/{name}": getattr(last, name) for name in self._LEVELS}
        row |= {"time_s": last.start_s + last.duration_s}
        row |= {"request/completed": self._completed, "request/failed": self._failed}
        if ttfts_s:
            row["request/mean_ttft_s"] = sum(ttfts_s) / len(ttfts_s)
        self._last, self._sums, self._ttfts_s = None, dict.fromkeys(self._SUMS, 0.0), []
        self._rows_left -= 1
        return row


def _init_arguments(knobs: WandbKnobs, run_info: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    described = [run_info.get(key) for key in ("backend", "workload", "model", "hardware")]
    return {
        "dir": str(Path(run_info["folder"])),
        "project": knobs.project,
        "entity": knobs.entity,
        "mode": knobs.mode,
        "group": knobs.group or run_info.get("sweep"),
        "job_type": str(run_info.get("task", "serve")),
        "name": f"{run_info.get('system')}-seed{run_info.get('seed')}",
        "tags": [str(tag)[:64] for tag in [*described, *knobs.tags] if tag],
        "config": {"run": {key: value for key, value in run_info.items() if key != "folder"}, **config},
        "timeout_s": knobs.finish_timeout_s,
        "start_timeout_s": knobs.start_timeout_s,
    }


def _init(arguments: dict[str, Any]) -> Any:
    import wandb

    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=arguments.pop("start_timeout_s"),
        finish_timeout=arguments.pop("timeout_s"),
    )
    run = wandb.init(**arguments, reinit="create_new", settings=settings)
    run.define_metric("time_s")
    run.define_metric("step/*", step_metric="time_s")
    run.define_metric("request/*", step_metric="time_s")
    return run


def _log_summary(run: Any, summary: Mapping[str, Any]) -> None:
    import wandb

    distributions = [(name, value) for name, value in _leaves("", summary, whole=True) if isinstance(value, Mapping)]
    rows: list[Any] = [[name, *(value[column] for column in _PERCENTILE_COLUMNS[1:])] for name, value in distributions]
    run.log({"percentiles": wandb.Table(columns=list(_PERCENTILE_COLUMNS), data=rows)})
    run.summary.update({name: value for name, value in _leaves("", summary) if value is not None})


def _leaves(prefix: str, value: Any, whole: bool = False) -> Iterator[tuple[str, Any]]:
    """``a/b/c`` names and values of a nested mapping, lists left out; ``whole`` keeps a distribution in one piece."""
    if isinstance(value, Mapping) and not (whole and "p50" in value):
        for key, inner in value.items():
            yield from _leaves(f"{prefix}/{key}" if prefix else str(key), inner, whole)
    elif not isinstance(value, list):
        yield prefix, value
