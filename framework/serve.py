"""``task=serve``: put the parts of a run together, serve the workload, leave the run's folder."""

from __future__ import annotations

import logging
import secrets
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .backends import Backend, open_backend, window_of
from .composition import Parts, TorchBackend, option, prepare, refusing
from .engine import Engine
from .iteration import EnginePolicies
from .memory import PageStore
from .metrics import Recorder, RequestRecord, RunRecorder, RunTotals, summarize, write_summary
from .metrics.decisions import DECISIONS, DecisionLog
from .metrics.files import replace_text
from .metrics.summary import SCHEMA
from .metrics.tracking import Tracker, open_tracker
from .narrowed import NarrowedContexts
from .opening import check_sizes, footprint_of, open_workload
from .policy import Tier, TokenTruncation
from .progress import RunProgress
from .run_info import RunInfo
from .schema import ConfigError
from .session import Arrivals, Progress, Session
from .task_knobs import ServeTask
from .waiting import WaitingQueue
from .workloads.conversation import Workload

log = logging.getLogger(__name__)


def serve(config: Mapping[str, Any], folder: Path, info: RunInfo) -> dict[str, Any]:
    """Run ``config`` into ``folder`` and return the content of its ``summary.json``.

    Raises
    ------
    ConfigError
        If the config cannot run; nothing was computed or written then.
    """
    from .quality.sampled import hearing, judge_sample, open_sampler  # which serves too

    parts = prepare(config, info)
    task = parts.task
    assert isinstance(task, ServeTask)
    decisions = decision_log(parts)
    if decisions is not None:
        parts = replace(parts, policies=replace(parts.policies, truncation=decisions))
    with ExitStack() as stack:
        with refusing():
            backend = open_backend(parts, folder)
            stack.callback(backend.close)
            workload = open_workload(parts, backend.shape.vocab_size, backend.tokenizer)
            check_sizes(parts, workload, window_of(parts, backend))
            run_info = {**describe(config, info, parts), "workload": workload.name, "model": backend.shape.name}
            sampler = open_sampler(parts, backend, workload, task.quality_sample)
            server = Server(parts, backend, workload)
        tracker = open_run_tracker(config, folder, info, run_info)
        stack.push(lambda kind, *_: tracker.finish(None, 1) if kind else None)
        recorder = stack.enter_context(RunRecorder(folder, tracker, parts.save_tokens))
        with RunProgress(info.label, "simulated" if parts.simulated else "run") as progress, hearing(sampler, backend):
            server.run(recorder, progress, None if sampler is None else sampler.arrived)
        recorder.close()
        if decisions is not None:
            decisions.write(folder / DECISIONS)
        problems = backend.finish_copies()
        rows = (recorder.requests, recorder.steps, recorder.transfers)
        summary = summarize(*rows, run_info, totals=server.totals(), slo=task.slo, prices=parts.prices)
        if (times := backend.times_from()) is not None:
            summary["run"]["times_from"] = times
        if backend.layer_map is not None:
            summary["run"]["layer_map"] = backend.layer_map
        write_summary(folder, summary)
        if sampler is not None:
            backend.close()
            summary["quality"] = judge_sample(config, info, folder, sampler)
            write_summary(folder, summary)
        tracker.finish(summary)
    for problem in [*problems, *_misplaced(parts, summary)]:
        log.warning("%s: %s", info.label, problem)
    return summary


def decision_log(parts: Parts) -> DecisionLog | None:
    """The chosen truncation as one whose decisions are written down, if they are to be.

    Raises
    ------
    ConfigError
        If nothing decides on single tokens.
    """
    if not parts.save_decisions:
        return None
    truncation = parts.lossy.truncation
    if truncation is None or parts.simulated:
        which = "backend=simulated" if parts.simulated else f"truncation={parts.policies.truncation.name}"
        raise ConfigError(f"save_decisions=true: {which} decides on no tokens")
    return DecisionLog(truncation)


def _misplaced(parts: Parts, summary: Mapping[str, Any]) -> Iterator[str]:
    """Naive truncation is a choice, but not one to make unawares."""
    dropped, keeps = summary["cache"]["dropped_tokens"], parts.policies.truncation.keeps
    if isinstance(parts.policies.truncation, TokenTruncation):
        return
    if isinstance(parts.backend, TorchBackend) and dropped and keeps and not parts.backend.decoupled:
        yield f"{dropped} tokens were cut and the rest kept its old positions; backend.decoupled=true gives it new ones"


class Server:
    """One engine and one page store, made for one workload; ``adopted``: pages that an earlier run left on disk."""

    def __init__(self, parts: Parts, backend: Backend, workload: Workload) -> None:
        self._parts, self._backend, self._workload = parts, backend, workload
        self._arrivals = Arrivals()
        self._queue = WaitingQueue()
        self._narrowed: NarrowedContexts | None = None
        self.store = PageStore(
            parts.memory.page_size,
            backend.pages,
            {tier: parts.evictions[tier] for tier in backend.pages},
            costs=backend.executor.costs,
            writeback=parts.policies.writeback,
            leaves_only=not parts.policies.prefetch.holes,
            future=self._arrivals,
            queue=self._queue,
        )
        self.adopted = 0
        if backend.disk is not None and parts.memory.disk_persist:
            self.adopted = self.store.adopt(Tier.DISK, *backend.disk.stored())

    def run(
        self,
        recorder: Recorder,
        on_progress: Callable[[Progress], None],
        on_arrival: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        """Serve the workload from its first turn to its last; see ``Session`` of ``on_arrival``."""
        chosen, backend = self._parts.policies, self._backend
        policies = EnginePolicies(
            chosen.scheduling, chosen.prefetch, chosen.writeback, chosen.truncation, chosen.compression
        )
        engine = Engine(
            *(backend.executor, self.store, policies, recorder, backend.clock),
            queue=self._queue,
            links=backend.links,
            max_tokens=backend.max_tokens,
            footprint=footprint_of(self._parts, backend.shape),
            num_layers=backend.shape.stored_layers,
            nonce=secrets.randbits(62) if self._parts.memory.disk_persist else 0,
        )
        self._narrowed = engine.narrowed
        session = Session(
            *(self._workload, [engine], chosen.routing, backend.clock, recorder),
            arrivals=self._arrivals,
            warmup=self._parts.workload.warmup,
            on_progress=on_progress,
            on_arrival=on_arrival,
        )
        session.run()

    def totals(self) -> RunTotals:
        """What no record tells; complete once the backend's copies are finished."""
        backend = self._backend
        return RunTotals(
            evicted_pages={tier.name.lower(): pool.evicted_pages for tier, pool in self.store.pools.items()},
            peak_pages=self.store.device.peak_pages,
            page_bytes=backend.page_bytes,
            host_bytes=backend.tier_bytes(Tier.HOST),
            disk_bytes=backend.tier_bytes(Tier.DISK),
            adopted_pages=self.adopted,
            faults=backend.disk.faults if backend.disk is not None else {},
            narrowed=None if self._narrowed is None else self._narrowed.totals(),
        )


def describe(config: Mapping[str, Any], info: RunInfo, parts: Parts) -> dict[str, Any]:
    """The ``run`` section of ``summary.json``, as far as it is known before the run."""
    started = datetime.now(UTC).isoformat(timespec="microseconds")
    oracles = {family: {"oracle": True} for family, policy in parts.policies.by_family().items() if policy.oracle}
    return {
        **_identity(config, info, started),
        "status": "ok",
        "policies": {f: {**origin, **oracles.get(f, {})} for f, origin in parts.provenance.items()},
    }


def record_failure(
    folder: Path, config: Mapping[str, Any], info: RunInfo, error: str, trace: str | None = None
) -> None:
    """Leave a ``summary.json`` that says why the run failed, and the traceback in ``error.txt``. Never raises."""
    started = datetime.now(UTC).isoformat(timespec="microseconds")
    run = {**_identity(config, info, started), "status": "failed", "error": error, "policies": {}}
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if trace is not None:
            replace_text(folder / "error.txt", trace)
        write_summary(folder, {"schema": SCHEMA, "run": run})


def _identity(config: Mapping[str, Any], info: RunInfo, started: str) -> dict[str, Any]:
    names = {group: (config.get(group) or {}).get("name") for group in ("backend", "workload", "model", "hardware")}
    return {
        "id": uuid.uuid4().hex[:12],
        "started": started,
        "version": version("kvarena"),
        "git_commit": git_commit(),
        "seed": config.get("seed"),
        "system": info.label,
        "overrides": [word for word in info.overrides if "." in word.split("=")[0]],
        **names,
    }


def git_commit() -> str | None:
    """The commit of the checkout that runs, ``+`` if files differ from it; None if this is an installed copy."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return found.stdout.strip() or None
    return None


def open_run_tracker(config: Mapping[str, Any], folder: Path, info: RunInfo, run_info: Mapping[str, Any]) -> Tracker:
    """The tracker that ``config`` chooses, for the run that ``run_info`` describes."""
    name, knobs = option(config, "tracking")
    known = {"task": "serve", **run_info, "folder": str(folder), "sweep": info.sweep}

    def draw() -> None:
        from .report import compare

        compare([folder], folder)

    return open_tracker(name, knobs, known, config, draw if info.sweep is None else None)
