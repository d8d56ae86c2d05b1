"""``timeline.json``: a run in Chrome's trace event format, for https://ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .columns import Rows
from .files import replace_text

Event = dict[str, Any]

_COMPUTE, _REQUESTS, _TRANSFERS = 1, 2, 3
_EVENTS_PER_STEP, _EVENTS_PER_REQUEST, _EVENTS_PER_TRANSFER = 3, 8, 1


def write_timeline(path: Path, requests: Rows, steps: Rows, transfers: Rows, max_events: int) -> None:
    """Write compute by phase, the queue and memory by tier, each request's life and each transfer to ``path``.

    If there would be more than ``max_events`` events, only what began before a cut-off time is written, and
    ``otherData.note`` and a mark at the cut say so.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    cut_s = _cut_s(requests, steps, transfers, max_events)
    kept = [rows[_starts(rows) < cut_s] for rows in (requests, steps, transfers)]
    lanes = _lanes(kept[2])
    events = [*_names(lanes), *_step_events(kept[1]), *_request_events(kept[0]), *_transfer_events(kept[2], lanes)]
    other: dict[str, Any] = {"unit": "1 us of trace time is 1 us of the run's clock"}
    if np.isfinite(cut_s):
        other["note"] = (
            f"capped: only what began before {cut_s:.6g} s is shown ({len(kept[0])} of {len(requests)} requests, "
            f"{len(kept[1])} of {len(steps)} steps, {len(kept[2])} of {len(transfers)} transfers)"
        )
        events.append({"ph": "i", "s": "g", "pid": _COMPUTE, "tid": 1, "ts": cut_s * 1e6, "name": other["note"]})
    trace = {"displayTimeUnit": "ms", "otherData": other, "traceEvents": events}
    replace_text(path, json.dumps(trace, separators=(",", ":"), allow_nan=False))


def _starts(rows: Rows) -> np.ndarray[Any, np.dtype[np.float64]]:
    return rows["arrival_s" if "arrival_s" in (rows.dtype.names or ()) else "start_s"]


def _cut_s(requests: Rows, steps: Rows, transfers: Rows, max_events: int) -> float:
    """The time before which at most ``max_events`` events lie; infinite if all fit."""
    weights = (requests, _EVENTS_PER_REQUEST), (steps, _EVENTS_PER_STEP), (transfers, _EVENTS_PER_TRANSFER)
    times = np.concatenate([_starts(rows) for rows, _ in weights])
    order = np.argsort(times, kind="stable")
    total = np.cumsum(np.concatenate([np.full(len(rows), weight) for rows, weight in weights])[order])
    first_over = int(np.searchsorted(total, max_events, side="right"))
    return float(times[order[first_over]]) if first_over < len(times) else float("inf")


def _names(lanes: list[str]) -> Iterator[Event]:
    yield _meta(_COMPUTE, 0, "process_name", "compute")
    yield _meta(_COMPUTE, 1, "thread_name", "iterations")
    yield _meta(_REQUESTS, 0, "process_name", "requests")
    yield _meta(_TRANSFERS, 0, "process_name", "transfers")
    for tid, lane in enumerate(sorted(set(lanes)), start=1):
        yield _meta(_TRANSFERS, tid, "thread_name", lane)


def _meta(pid: int, tid: int, kind: str, name: str) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": {"name": name}}


def _step_events(steps: Rows) -> Iterator[Event]:
    """One slice per row; the queue and the pages in use by tier as counters."""
    names = steps.dtype.names or ()
    for values in steps.tolist():
        row = dict(zip(names, values, strict=True))
        start_us = row.pop("start_s") * 1e6
        at = {"pid": _COMPUTE, "tid": 1, "ts": start_us}
        yield {"ph": "X", **at, "dur": row.pop("duration_s") * 1e6, "name": _phase(row), "cat": "compute", "args": row}
        queue = {"running": row["running"], "waiting": row["waiting"]}
        yield {"ph": "C", "pid": _COMPUTE, "ts": start_us, "name": "requests", "args": queue}
        pages = {tier: row[f"{tier}_pages"] for tier in ("device", "host", "disk")}
        yield {"ph": "C", "pid": _COMPUTE, "ts": start_us, "name": "pages in use", "args": pages}


def _phase(row: dict[str, Any]) -> str:
    if not row["prefill_tokens"]:
        return "decode"
    return "prefill + decode" if row["decode_tokens"] else "prefill"


def _request_events(requests: Rows) -> Iterator[Event]:
    """Nested async slices: the request, and in it queued, prefill and decode, as far as it came."""
    names = requests.dtype.names or ()
    for values in requests.tolist():
        row = dict(zip(names, values, strict=True))
        times = [row["arrival_s"], row["scheduled_s"], row["first_token_s"], row["completion_s"]]
        end_s = max(times)
        title = f"request {row['request']} (conversation {row['conversation']}, turn {row['turn']})"
        yield _async("b", row["request"], times[0], title, row)
        for name, start_s, stop_s in zip(("queued", "prefill", "decode"), times, times[1:], strict=False):
            if start_s >= 0 and stop_s >= start_s:
                yield _async("b", row["request"], start_s, name)
                yield _async("e", row["request"], stop_s, name)
        yield _async("e", row["request"], end_s, title)


def _async(ph: str, request: int, time_s: float, name: str, args: Event | None = None) -> Event:
    event = {"ph": ph, "cat": "request", "id": request, "pid": _REQUESTS, "tid": 1, "ts": time_s * 1e6, "name": name}
    return event if args is None else event | {"args": args}


def _transfer_events(transfers: Rows, lanes: list[str]) -> Iterator[Event]:
    names = transfers.dtype.names or ()
    tids = {lane: tid for tid, lane in enumerate(sorted(set(lanes)), start=1)}
    for values, lane in zip(transfers.tolist(), lanes, strict=True):
        row = dict(zip(names, values, strict=True))
        start_s, end_s = row.pop("start_s"), row.pop("end_s")
        at = {"pid": _TRANSFERS, "tid": tids[lane], "ts": start_s * 1e6, "dur": (end_s - start_s) * 1e6}
        yield {"ph": "X", **at, "name": row["reason"], "cat": "transfer", "args": row}


def _lanes(transfers: Rows) -> list[str]:
    """A track for each transfer: its link, or ``link #2``, ``#3``, ... while others are in flight on it."""
    lanes = [""] * len(transfers)
    ends_s: dict[str, list[float]] = {}
    for i in np.argsort(transfers["start_s"], kind="stable").tolist():
        start_s, link = float(transfers["start_s"][i]), str(transfers["link"][i])
        busy = ends_s.setdefault(link, [])
        lane = next((n for n, end_s in enumerate(busy) if end_s <= start_s), len(busy))
        busy[lane : lane + 1] = [float(transfers["end_s"][i])]
        lanes[i] = link if lane == 0 else f"{link} #{lane + 1}"
    return lanes
