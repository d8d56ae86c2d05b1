"""``timeline.json`` is valid, shows who did what when, and stays small."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kvarena.framework.metrics import RequestRecord, RunRecorder, StepRecord, TransferRecord
from kvarena.framework.metrics.columns import TransferColumns

Maker = Callable[..., RequestRecord]
Event = dict[str, Any]
FIELDS = {
    "X": {"ts", "dur"},
    "C": {"ts", "args"},
    "i": {"ts", "s"},
    "M": {"args"},
    "s": {"ts", "id"},
    "f": {"ts", "id"},
}


def problems(trace: Mapping[str, Any]) -> list[str]:
    """What a reader of the trace event format would stumble over."""
    events: list[Event] = trace["traceEvents"]
    found = []
    named = {(e["pid"], e["tid"], e["name"]) for e in events if e["ph"] == "M"}
    tracks: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in events:
        if not FIELDS.get(event["ph"], {"no such phase"}) | {"name", "pid", "tid"} <= event.keys():
            found.append(f"incomplete: {event}")
            continue
        if event["ph"] == "M":
            continue
        if type(event["ts"]) is not int or event["ts"] < 0 or event.get("dur", 0) < 0:
            found.append(f"time: {event}")
        if (event["pid"], 0, "process_name") not in named:
            found.append(f"no process: {event}")
        if event["ph"] in "Xsfi" and (event["pid"], event["tid"], "thread_name") not in named:
            found.append(f"no track: {event}")
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append(event)
        if event["ph"] == "C" and not all(isinstance(value, int) for value in event["args"].values()):
            found.append(f"counter: {event}")
    for track in tracks.values():
        found += _unnested(track)
    return found + _flows(events, tracks)


def _unnested(track: list[Event]) -> list[str]:
    """Slices of one track that do not nest, read by time and, at one time, in the order of the file."""
    found, open_until = [], list[int]()
    for event in sorted(track, key=lambda e: int(e["ts"])):
        end = event["ts"] + event["dur"]
        while open_until and open_until[-1] <= event["ts"] and end > open_until[-1]:
            open_until.pop()
        if open_until and end > open_until[-1]:
            found.append(f"does not nest: {event}")
        open_until.append(end)
    return found


def _flows(events: list[Event], tracks: Mapping[tuple[int, int], list[Event]]) -> list[str]:
    """Arrows that go back in time, lack an end or touch no slice."""
    ends: dict[int, dict[str, Event]] = defaultdict(dict)
    for event in events:
        if event["ph"] in "sf":
            ends[event["id"]][event["ph"]] = event
    found = [f"flow {i}" for i, e in ends.items() if e.keys() != {"s", "f"} or e["s"]["ts"] > e["f"]["ts"]]
    for pair in ends.values():
        for event in pair.values():
            track = tracks[event["pid"], event["tid"]]
            if not any(e["ts"] <= event["ts"] <= e["ts"] + e["dur"] for e in track):
                found.append(f"flow into nothing: {event}")
    return found


def _read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "timeline.json").read_text()))


def _slices(trace: Mapping[str, Any], process: str, track: str) -> list[tuple[str, float, float]]:
    """(name, start, end) in seconds on the tracks whose names begin so, in order of the file."""
    events = trace["traceEvents"]
    (pid,) = (e["pid"] for e in events if e["name"] == "process_name" and e["args"]["name"] == process)
    tids = {e["tid"] for e in events if _names(e, "thread_name", track) and e["pid"] == pid}
    inside = (e for e in events if e["ph"] == "X" and e["pid"] == pid and e["tid"] in tids)
    return [(e["name"], e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6) for e in inside]


def _names(event: Event, kind: str, start: str) -> bool:
    return event["name"] == kind and bool(event["args"]["name"].startswith(start))


@pytest.fixture
def layered(make_request: Maker, tmp_path: Path) -> dict[str, Any]:
    """Iteration 1-3 of request 7 (admitted at 1, first token at 3) waits half a second; its four layers come from 1 to
    2. Before it another one decoded; something goes down from 2 to 3.5, beneath nothing in the end."""
    with RunRecorder(tmp_path) as recorder:
        recorder.step(StepRecord(0.0, 0.5, 5, 0, 5, 0, 1, 1, 3))
        recorder.step(StepRecord(1.0, 2.0, 1, 64, 2, 16, 2, 0, 5, host_pages=7, stall_s=0.5))
        recorder.transfer(TransferRecord(1.0, 2.0, "host->device", 2, 4, 64, "load", 7, 0, (1.25, 1.5, 1.75, 2.0)))
        recorder.transfer(TransferRecord(2.0, 3.5, "device->host", 5, 1, 160, "swap-out"))
        recorder.request(make_request(7, arrival_s=0.25, scheduled_s=1.0, first_token_s=3.0, completion_s=6.0))
    return _read(tmp_path)


def test_iterations_by_phase_with_their_stall_above_the_links(layered: dict[str, Any]) -> None:
    assert problems(layered) == []
    assert _slices(layered, "engine", "compute") == [
        ("decode", 0.0, 0.5), ("prefill + recompute + decode", 1.0, 3.0), ("stall", 1.0, 1.5),
    ]  # fmt: skip
    events = layered["traceEvents"]
    order = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name" and e["pid"] == 1}
    assert list(order) == ["compute", "device->host (67% while computing)", "host->device (50% while computing)"]
    assert list(order.values()) == [1, 2, 3]


def test_layers_lie_beneath_their_load_and_it_points_to_its_iteration(layered: dict[str, Any]) -> None:
    load, *layers = _slices(layered, "engine", "host->device")
    assert load == ("load", 1.0, 2.0)
    assert [name for name, *_ in layers] == ["layer 0", "layer 1", "layer 2", "layer 3"]
    assert [(start, end) for _, start, end in layers] == [(1, 1.25), (1.25, 1.5), (1.5, 1.75), (1.75, 2)]
    told = next(e["args"] for e in layered["traceEvents"] if e.get("cat") == "transfer")
    assert (told["pages"], told["layers"], told["bytes"], told["reason"], told["request"]) == (2, 4, 64, "load", 7)
    assert {e["args"]["bytes"] for e in layered["traceEvents"] if e.get("cat") == "layer"} == {16}
    arrow = [(e["ph"], e["tid"], e["ts"]) for e in layered["traceEvents"] if e["ph"] in "sf"]
    assert arrow == [("s", 3, 1_000_000), ("f", 1, 1_000_000)]


def test_queue_and_memory_are_counted_where_they_change(layered: dict[str, Any]) -> None:
    counts = [(e["name"], e["ts"] / 1e6, e["args"]) for e in layered["traceEvents"] if e["ph"] == "C"]
    assert [(time_s, args) for name, time_s, args in counts if name == "requests"] == [
        (0.0, {"running": 1, "waiting": 1}), (0.5, {"running": 0, "waiting": 1}),
        (1.0, {"running": 2, "waiting": 0}), (3.0, {"running": 0, "waiting": 0}),
    ]  # fmt: skip
    assert [(time_s, args) for name, time_s, args in counts if name == "pages in use"] == [
        (0.0, {"device": 3, "host": 0}), (1.0, {"device": 5, "host": 7}),
    ]  # fmt: skip


def test_each_request_lives_on_its_conversations_track(layered: dict[str, Any]) -> None:
    assert _slices(layered, "conversations", "conversation 7") == [
        ("turn 0", 0.25, 6.0), ("queued", 0.25, 1.0), ("prefill", 1.0, 3.0), ("load", 1.0, 2.0), ("decode", 3.0, 6.0),
    ]  # fmt: skip
    assert [e["ts"] for e in layered["traceEvents"] if e["name"] == "done"] == [6_000_000]


def test_lives_that_wait_overlap_or_end_early(make_request: Maker, tmp_path: Path) -> None:
    with RunRecorder(tmp_path) as recorder:
        recorder.request(make_request(0, conversation=4, load_stall_s=0.75))
        recorder.request(make_request(1, conversation=4, turn=1, arrival_s=5.0, scheduled_s=6.0, first_token_s=7.0,
                                      completion_s=8.0))  # fmt: skip
        recorder.request(make_request(2, conversation=5, arrival_s=1.0, scheduled_s=-1.0, first_token_s=-1.0,
                                      completion_s=-1.0, status="failed"))  # fmt: skip
        recorder.transfer(TransferRecord(0.5, 1.5, "host->device", 2, 1, 64, "load", 0))
        recorder.transfer(TransferRecord(1.5, 1.75, "disk->device", 3, 1, 64, "load", 0))
    trace = _read(tmp_path)
    assert problems(trace) == []
    assert _slices(trace, "conversations", "conversation 4")[:7] == [
        ("turn 0", 0, 6), ("queued", 0, 1), ("load", 0.5, 1), ("loading", 1, 1.75), ("load", 1, 1.75),
        ("prefill", 1.75, 2), ("decode", 2, 6),
    ]  # fmt: skip
    assert _slices(trace, "conversations", "conversation 4 #2")[0] == ("turn 1", 5, 8)
    assert _slices(trace, "conversations", "conversation 5") == [("turn 0 (failed)", 1, 1)]
    assert any(e["args"].get("pages") == 5 for e in trace["traceEvents"] if e.get("cat") == "load" and e["ph"] == "X")


def _fill(recorder: RunRecorder, make_request: Maker, count: int) -> None:
    for i in range(count):
        recorder.step(StepRecord(i * 1.0, 0.5, 1, 10 if i % 2 else 0, 1, 0, 1, 0, i))
        recorder.transfer(TransferRecord(i * 1.0, i + 1.5, "host->device", 2, 4, 64, "load", i, 0, (i + 1.0, i + 1.5)))
        recorder.request(make_request(i, arrival_s=float(i), scheduled_s=i + 1.0, first_token_s=i + 2.0,
                                      completion_s=i + 6.0))  # fmt: skip


def test_transfers_at_once_take_tracks_of_their_own(make_request: Maker, tmp_path: Path) -> None:
    with RunRecorder(tmp_path) as recorder:
        _fill(recorder, make_request, 3)
    trace = _read(tmp_path)
    assert problems(trace) == []
    assert [start for name, start, _ in _slices(trace, "engine", "host->device (") if name == "load"] == [0, 2]
    assert [start for name, start, _ in _slices(trace, "engine", "host->device #2") if name == "load"] == [1]


def test_a_long_timeline_is_cut_and_says_so(make_request: Maker, tmp_path: Path) -> None:
    with RunRecorder(tmp_path, timeline_events=1800) as recorder:
        _fill(recorder, make_request, 500)
    trace = _read(tmp_path)
    note = trace["otherData"]["note"]
    assert note.startswith("capped: only what began before 100 s is shown (100 of 500 requests")
    assert note in [e["name"] for e in trace["traceEvents"]]
    assert 1000 <= sum(e["ph"] != "M" for e in trace["traceEvents"]) <= 1801
    assert problems(trace) == []


def test_layers_are_kept_for_the_first_transfers_only(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    recorder.transfers = TransferColumns(most_layers=9)
    for i in range(5):
        ends_s = tuple(i + (k + 1) / 4 for k in range(4))
        recorder.transfer(TransferRecord(float(i), i + 1.0, "host->device", 1, 4, 64, "load", -1, 4, ends_s))
    recorder.close()
    trace = _read(tmp_path)
    assert trace["otherData"]["layers"] == "the layers of transfers are shown up to 2 s"
    layers = [e["name"] for e in trace["traceEvents"] if e.get("cat") == "layer"]
    assert layers == [f"layer {k}" for k in (4, 5, 6, 7)] * 2


@pytest.mark.parametrize(
    ("event", "found"),
    [
        ({"ph": "X", "pid": 1, "tid": 1, "ts": 2_500_000, "dur": 1_000_000, "name": "x"}, "does not nest"),
        ({"ph": "X", "pid": 1, "tid": 1, "ts": 9, "dur": -1, "name": "x"}, "time"),
        ({"ph": "X", "pid": 1, "tid": 77, "ts": 9, "dur": 1, "name": "x"}, "no track"),
        ({"ph": "i", "pid": 9, "tid": 1, "ts": 9, "s": "g", "name": "x"}, "no process"),
        ({"ph": "X", "pid": 1, "tid": 1, "ts": 9, "name": "x"}, "incomplete"),
        ({"ph": "s", "pid": 1, "tid": 1, "ts": 9, "id": 99, "name": "x"}, "flow 99"),
    ],
)
def test_the_check_finds_what_is_wrong(event: Event, found: str, layered: dict[str, Any]) -> None:
    layered["traceEvents"].append(event)
    assert any(problem.startswith(found) for problem in problems(layered))
