"""The tracks of a timeline: events of Chrome's trace event format, of rows of a run.

Process 1 is the engine: its iterations, and each link beneath them. Then the queue, memory by tier, and a track for
each conversation with the life of its requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .columns import LayerArrivals, Rows

Event = dict[str, Any]
ENGINE, QUEUE, MEMORY, CONVERSATIONS = 1, 2, 3, 4
ITERATIONS = 1  # the track of the iterations; links follow
_FIRST_CONVERSATION = 1000
_TIERS = ("device", "host", "disk")
_TIMES = ("arrival_s", "scheduled_s", "first_token_s", "completion_s")


def track_names() -> Iterator[Event]:
    """The processes, in order, and the track of the iterations."""
    named = ((ENGINE, "engine"), (QUEUE, "queue"), (MEMORY, "memory"), (CONVERSATIONS, "conversations"))
    for pid, name in named:
        yield {"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": name}}
        yield {"ph": "M", "pid": pid, "tid": 0, "name": "process_sort_index", "args": {"sort_index": pid}}
    yield from thread(ENGINE, ITERATIONS, "compute")


def thread(pid: int, tid: int, name: str) -> Iterator[Event]:
    """The name of a track, and that its place is its number."""
    yield {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}
    yield {"ph": "M", "pid": pid, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}}


def instant(name: str, time_s: float) -> Event:
    """A mark across all tracks."""
    return {"ph": "i", "s": "g", "pid": ENGINE, "tid": ITERATIONS, "ts": _us(time_s), "name": name}


def _us(time_s: float) -> int:
    return round(time_s * 1e6)


def _slice(pid: int, tid: int, span_us: tuple[int, int], name: str, cat: str, args: Event | None = None) -> Event:
    start, stop = span_us
    event = {"ph": "X", "pid": pid, "tid": tid, "ts": start, "dur": stop - start, "name": name, "cat": cat}
    return event if args is None else event | {"args": args}


def _dicts(rows: Rows) -> Iterator[Event]:
    names = rows.dtype.names or ()
    return (dict(zip(names, values, strict=True)) for values in rows.tolist())


# --- iterations, the queue, memory ----------------------------------------------------------------------------------


def step_events(steps: Rows) -> Iterator[Event]:
    """A slice for each row, named by what it computes; what it waited for loads lies beneath, at its start."""
    for row in _dicts(steps):
        start_s, end_s = row.pop("start_s"), 0.0
        end_s = start_s + row.pop("duration_s")
        span = _us(start_s), _us(end_s)
        told = {name: value for name, value in row.items() if value}
        yield _slice(ENGINE, ITERATIONS, span, _phase(row), "compute", told)
        if row["stall_s"] > 0:
            stalled = span[0], min(span[1], _us(start_s + row["stall_s"]))
            yield _slice(ENGINE, ITERATIONS, stalled, "stall", "stall", {"stall_s": row["stall_s"]})


def _phase(row: Event) -> str:
    again = row["recompute_tokens"]
    parts = [
        *(["prefill"] if row["prefill_tokens"] > again else []),
        *(["recompute"] if again else []),
        *(["decode"] if row["decode_tokens"] else []),
    ]
    return " + ".join(parts) or "idle"


def counter_events(steps: Rows) -> Iterator[Event]:
    """Requests that run and wait, and pages in use by tier, wherever they change. Between iterations nothing runs."""
    used = [tier for tier in _TIERS if tier == "device" or steps[f"{tier}_pages"].any()]
    ends_s = steps["start_s"] + steps["duration_s"]
    gaps = np.append(steps["start_s"][1:] > ends_s[:-1], len(steps) > 0)[: len(steps)]
    queue: Event = {}
    pages: Event = {}
    for row, end_s, gap in zip(_dicts(steps), ends_s.tolist(), gaps.tolist(), strict=True):
        start = _us(row["start_s"])
        if (now := {"running": row["running"], "waiting": row["waiting"]}) != queue:
            yield {"ph": "C", "pid": QUEUE, "tid": 0, "ts": start, "name": "requests", "args": now}
        queue = now
        if (held := {tier: row[f"{tier}_pages"] for tier in used}) != pages:
            yield {"ph": "C", "pid": MEMORY, "tid": 0, "ts": start, "name": "pages in use", "args": held}
        pages = held
        if gap:
            queue = {"running": 0, "waiting": row["waiting"]}
            yield {"ph": "C", "pid": QUEUE, "tid": 0, "ts": _us(end_s), "name": "requests", "args": queue}


# --- links -----------------------------------------------------------------------------------------------------------


def lanes_of(transfers: Rows) -> list[str]:
    """A track for each transfer: its link, or ``link #2``, ``#3``, ... while others are in flight on it."""
    return _lanes(transfers["link"].tolist(), transfers["start_s"].tolist(), transfers["end_s"].tolist())


def _lanes(names: Sequence[Any], starts_s: Sequence[float], ends_s: Sequence[float]) -> list[str]:
    lanes = [""] * len(names)
    busy_until_s: dict[Any, list[float]] = {}
    for i in np.argsort(np.asarray(starts_s, np.float64), kind="stable").tolist():
        busy = busy_until_s.setdefault(names[i], [])
        lane = next((n for n, end_s in enumerate(busy) if end_s <= starts_s[i]), len(busy))
        busy[lane : lane + 1] = [ends_s[i]]
        lanes[i] = f"{names[i]}" if lane == 0 else f"{names[i]} #{lane + 1}"
    return lanes


def transfer_events(
    transfers: Rows, tids: Sequence[int], arrivals: Mapping[int, LayerArrivals], requests: Rows, steps: Rows
) -> Iterator[Event]:
    """A slice for each transfer, one beneath it for each layer that is known, and an arrow from each load to the
    iteration that its request joined first."""
    joins = _joins(requests, steps)
    for place, (row, tid) in enumerate(zip(_dicts(transfers), tids, strict=True)):
        start_s, end_s = row.pop("start_s"), row.pop("end_s")
        span = _us(start_s), _us(end_s)
        yield _slice(ENGINE, tid, span, row["reason"], "transfer", row)
        if (arrived := arrivals.get(place)) is not None:
            yield from _layers(tid, span, arrived, row)
        if row["link"].endswith("->device") and (joined := joins.get(row["request"], -1)) >= span[0]:
            flow = {"cat": "load", "id": place, "name": f"request {row['request']}", "pid": ENGINE}
            yield {"ph": "s", **flow, "tid": tid, "ts": span[0]}
            yield {"ph": "f", "bp": "e", **flow, "tid": ITERATIONS, "ts": joined}


def _joins(requests: Rows, steps: Rows) -> dict[int, int]:
    """When the first iteration of each request began [us], by request; without those of which it is not shown."""
    starts = np.rint(np.sort(steps["start_s"]) * 1e6).astype(np.int64)
    joined = np.rint((requests["scheduled_s"] + requests["load_stall_s"]) * 1e6).astype(np.int64)
    places = np.searchsorted(starts, joined - 1)  # a sum of times is rounded
    firsts = np.append(starts, -1)[places]
    right = (requests["scheduled_s"] >= 0) & (firsts <= requests["first_token_s"] * 1e6)
    return dict(zip(requests["request"][right].tolist(), firsts[right].tolist(), strict=True))


def _layers(tid: int, span: tuple[int, int], arrived: LayerArrivals, row: Event) -> Iterator[Event]:
    start = span[0]
    told = {"pages": row["pages"], "bytes": row["bytes"] // len(arrived.ends_s)}
    for layer, end_s in enumerate(arrived.ends_s, start=arrived.first):
        end = max(start, min(span[1], _us(end_s)))
        yield _slice(ENGINE, tid, (start, end), f"layer {layer}", "layer", told)
        start = end


# --- conversations ---------------------------------------------------------------------------------------------------


def conversation_lanes(requests: Rows) -> list[str]:
    """A track for each request: its conversation's, or ``conversation 7 #2``, ... where its requests overlap."""
    names = [f"conversation {number}" for number in requests["conversation"].tolist()]
    return _lanes(names, requests["arrival_s"].tolist(), _ends_s(requests))


def _ends_s(requests: Rows) -> list[float]:
    ends: list[float] = np.max([requests[name] for name in _TIMES], axis=0).tolist() if len(requests) else []
    return ends


def conversation_events(requests: Rows, lanes: Sequence[str], transfers: Rows) -> Iterator[Event]:
    """The tracks by first arrival; in each request what it did, as far as it came, and beneath it its loads."""
    order = np.argsort(requests["arrival_s"], kind="stable").tolist()
    tids: dict[str, int] = {}
    for i in order:
        tids.setdefault(lanes[i], _FIRST_CONVERSATION + len(tids))
    for name, tid in tids.items():
        yield from thread(CONVERSATIONS, tid, name)
    loads = _loads(transfers)
    rows = list(_dicts(requests))
    for i in order:
        yield from _life(rows[i], tids[lanes[i]], loads.get(rows[i]["request"], []))


def _life(row: Event, tid: int, loads: Sequence[Event]) -> Iterator[Event]:
    times_s = [row[name] for name in _TIMES]
    whole = _us(times_s[0]), _us(max(times_s))
    title = f"turn {row['turn']}" if row["status"] == "ok" else f"turn {row['turn']} ({row['status']})"
    told = {name: value for name, value in row.items() if value or name in ("request", "conversation", "turn")}
    yield _slice(CONVERSATIONS, tid, whole, title, "request", told)
    for name, start_s, stop_s in _phases(times_s, row["load_stall_s"]):
        span = _us(start_s), _us(stop_s)
        yield _slice(CONVERSATIONS, tid, span, name, "phase")
        for load in loads:
            inside = max(span[0], load["span"][0]), min(span[1], load["span"][1])
            if inside[0] < inside[1]:
                yield _slice(CONVERSATIONS, tid, inside, "load", "load", load["args"])
    done = "done" if row["status"] == "ok" else str(row["status"])
    yield {"ph": "i", "s": "t", "pid": CONVERSATIONS, "tid": tid, "ts": whole[1], "name": done, "cat": "request"}


def _phases(times_s: Sequence[float], stall_s: float) -> Iterator[tuple[str, float, float]]:
    """What a request did from when to when. ``times_s``: arrival, admission, first token, end, negative if it never
    came; ``stall_s``: it waited for its loads, admitted, before it computed."""
    arrival_s, scheduled_s, first_s, end_s = times_s
    if scheduled_s < 0:
        return
    yield "queued", arrival_s, scheduled_s
    if first_s < 0:
        return
    computes_s = min(first_s, scheduled_s + stall_s)
    if computes_s > scheduled_s:
        yield "loading", scheduled_s, computes_s
    yield "prefill", computes_s, first_s
    if end_s >= first_s:
        yield "decode", first_s, end_s


def _loads(transfers: Rows) -> dict[int, list[Event]]:
    """What went to the device for each request: spans in order, those that touch as one."""
    found: dict[int, list[Event]] = {}
    to_device = [str(link).endswith("->device") for link in transfers["link"].tolist()]
    mine = transfers[np.array(to_device, bool) & (transfers["request"] >= 0)]
    for row in _dicts(mine[np.argsort(mine["start_s"], kind="stable")]):
        start, stop = _us(row["start_s"]), _us(row["end_s"])
        spans = found.setdefault(row["request"], [])
        if spans and start <= spans[-1]["span"][1]:
            last = spans[-1]
            last["span"] = last["span"][0], max(stop, last["span"][1])
            last["args"] = {name: last["args"][name] + row[name] for name in ("pages", "bytes")}
        else:
            spans.append({"span": (start, stop), "args": {"pages": row["pages"], "bytes": row["bytes"]}})
    return found
