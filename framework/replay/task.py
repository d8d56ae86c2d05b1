"""``task=replay``: a workload's pages put to an eviction policy at one capacity, or at those of a miss-ratio curve."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..composition import Parts, option, prepare, refusing
from ..metrics import write_summary
from ..metrics.summary import SCHEMA
from ..opening import open_workload, vocabulary
from ..policy import Eviction
from ..progress import WorkProgress
from ..registry import Registry
from ..run_info import RunInfo
from ..serve import describe, open_run_tracker
from ..task_knobs import ReplayTask
from .curve import Contest, MakePolicy, Point, default_capacities
from .requests import in_order
from .trace import Asking, check_pages, gather

CURVE = "replay.parquet"


def replay(config: Mapping[str, Any], folder: Path, info: RunInfo) -> dict[str, Any]:
    """Run ``config`` into ``folder`` and return the content of its ``summary.json``.

    Raises
    ------
    ConfigError
        If the config cannot run; nothing was computed or written then.
    """
    parts = prepare(config, info)
    task = parts.task
    assert isinstance(task, ReplayTask)
    with refusing():
        workload = open_workload(parts, vocabulary(parts))
        size = parts.memory.page_size
        check_pages(in_order(workload), task.semantics, size, parts.memory.device_tokens)
        asking = gather(in_order(workload), task.semantics, size)
        if task.semantics == "prefix":
            asking.trace.chains  # noqa: B018  refuses pages whose keys do not tell their context; kept for the replays
    capacities = _capacities(parts, task, asking)
    run_info = {**describe(config, info, parts), "workload": workload.name, "task": "replay"}
    contest = Contest(asking, task.semantics, *_policies(config, task), parts.workload.warmup)
    tracker = open_run_tracker(config, folder, info, run_info)
    with ExitStack() as stack:
        stack.push(lambda kind, *_: tracker.finish(None, 1) if kind else None)
        points = _replay(contest, capacities, info.label)
        summary = _summary(run_info, contest, points)
        folder.mkdir(parents=True, exist_ok=True)
        _write_curve(folder / CURVE, contest, points)
        write_summary(folder, summary)
        tracker.finish(summary)
    _say_speed(info.label, asking, points)
    return summary


def _replay(contest: Contest, capacities: Sequence[int], label: str) -> list[Point]:
    points = []
    with WorkProgress(label, len(capacities)) as progress:
        for point in contest.points(capacities):
            points.append(point)
            progress.note(f"{point.capacity:,} pages")
            progress.advance()
    return points


def _capacities(parts: Parts, task: ReplayTask, asking: Asking) -> list[int]:
    if task.capacities is not None:
        return sorted(set(task.capacities))
    tokens = parts.memory.device_tokens
    if tokens is None:
        return default_capacities(asking.trace.distinct, task.points)
    return [tokens // asking.page_tokens]


def _policies(config: Mapping[str, Any], task: ReplayTask) -> tuple[MakePolicy, MakePolicy | None]:
    """The chosen policy, and Belady's where it is wanted and is not the chosen one."""
    registry = Registry.discover()
    name, knobs = option(config, "eviction")

    def make(name: str, knobs: Mapping[str, Any]) -> Eviction:
        policy = registry.build("eviction", name, knobs)
        assert isinstance(policy, Eviction)
        return policy

    beside = task.belady and name != "belady" and "belady" in registry.names("eviction")
    return lambda: make(name, knobs), (lambda: make("belady", {})) if beside else None


def _summary(run_info: Mapping[str, Any], contest: Contest, points: Sequence[Point]) -> dict[str, Any]:
    asking, warmup = contest.asking, contest.warmup
    at = points[-1]
    infinite = contest.infinite_hits()
    return {
        "schema": SCHEMA,
        "run": {**run_info, "saturated": False},
        "workload": {
            "conversations": len(set(asking.trace.conversations[warmup:])),
            "requests": max(0, asking.trace.requests - warmup),
            "warmup_requests": min(asking.trace.requests, warmup),
            "failed": at.refused_requests,
            "prompt_tokens": int(asking.new_tokens[warmup:].sum()),
            "history_tokens": int((asking.input_tokens - asking.new_tokens)[warmup:].sum()),
            "output_tokens": int(asking.reply_tokens[warmup:].sum()),
        },
        "replay": {
            "semantics": contest.semantics,
            "page_tokens": asking.page_tokens,
            "distinct_pages": asking.trace.distinct,
            **_figures(at),
            "infinite_hits": infinite,
            "infinite_hit_ratio": infinite / int(asking.asked[warmup:].sum()) if len(asking.asked) > warmup else None,
            "curve": [_figures(point) for point in points],
        },
    }


def _figures(point: Point) -> dict[str, Any]:
    belady = point.belady_hits
    return {
        "capacity": point.capacity,
        "accesses": point.accesses,
        "hits": point.hits,
        "hit_ratio": point.hit_ratio,
        "evictions": point.evictions,
        "refused_requests": point.refused_requests,
        "belady_hits": belady,
        "belady_hit_ratio": None if belady is None or not point.accesses else belady / point.accesses,
    }


def _write_curve(path: Path, contest: Contest, points: Sequence[Point]) -> None:
    """One row per capacity."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{**_figures(point), "capacity_tokens": point.capacity * contest.asking.page_tokens} for point in points]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _say_speed(label: str, asking: Asking, points: Sequence[Point]) -> None:
    """How fast the policy's decisions were: printed, for a summary tells nothing that differs from run to run."""
    seconds = sum(point.seconds for point in points)
    accesses = len(asking.trace.pages) * len(points)
    rate = accesses / seconds / 1e6 if seconds > 0 else float(np.inf)
    print(f"{label}: {accesses:,} page accesses replayed in {seconds:.2f} s, {rate:.2f} M/s")
