"""``timeline.json``: a run in Chrome's trace event format, for https://ui.perfetto.dev or chrome://tracing.

Times are whole microseconds, so that slices that nest in the run nest in every reader.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import LayerArrivals, Rows
from .files import replace_text
from .timeline_tracks import (
    ENGINE,
    Event,
    conversation_events,
    conversation_lanes,
    counter_events,
    instant,
    lanes_of,
    step_events,
    thread,
    track_names,
    transfer_events,
)

_EVENTS_PER_STEP, _EVENTS_PER_REQUEST, _EVENTS_PER_TRANSFER = 4, 7, 5
_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Shown:
    """The rows that began before ``cut_s``. ``arrivals``: by place in ``transfers``."""

    requests: Rows
    steps: Rows
    transfers: Rows
    cut_s: float
    arrivals: Mapping[int, LayerArrivals] = field(default_factory=dict)


def write_timeline(
    path: Path,
    requests: Rows,
    steps: Rows,
    transfers: Rows,
    max_events: int,
    arrivals: Mapping[int, LayerArrivals] | None = None,
) -> None:
    """Write the compute by phase beside each link, the queue, memory by tier and each request's life to ``path``.

    If there would be more than ``max_events`` events, only what began before a cut-off time is written, and
    ``otherData.note`` and a mark at the cut say so.

    Parameters
    ----------
    arrivals: of the layers of a transfer, by its place in ``transfers``, as far as they are kept; drawn beneath it.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    known = {} if arrivals is None else arrivals
    shown = _shown(requests, steps, transfers, max_events, known)
    other: dict[str, Any] = {"unit": "1 us of trace time is 1 us of the run's clock"}
    events = list(_events(shown))
    if np.isfinite(shown.cut_s):
        other["note"] = (
            f"capped: only what began before {shown.cut_s:.6g} s is shown ({len(shown.requests)} of {len(requests)} "
            f"requests, {len(shown.steps)} of {len(steps)} steps, {len(shown.transfers)} of {len(transfers)} transfers)"
        )
        events.append(instant(other["note"], shown.cut_s))
    if shown.arrivals and len(shown.arrivals) == len(known) < _layered(shown.transfers):
        until_s = float(shown.transfers["end_s"][max(shown.arrivals)])
        other["layers"] = f"the layers of transfers are shown up to {until_s:.6g} s"
        events.append(instant(other["layers"], until_s))
    trace = {"displayTimeUnit": "ms", "otherData": other, "traceEvents": events}
    replace_text(path, json.dumps(trace, separators=(",", ":"), allow_nan=False))


def _layered(transfers: Rows) -> int:
    return int((transfers["layers"] > 1).sum())


def _events(shown: _Shown) -> Iterator[Event]:
    lanes = lanes_of(transfers := shown.transfers)
    tracks = {name: place for place, name in enumerate(sorted(set(lanes)), start=2)}
    lives = conversation_lanes(shown.requests)
    yield from track_names()
    for name, tid in tracks.items():
        share = _share_computing(transfers[[lane == name for lane in lanes]], shown.steps)
        yield from thread(ENGINE, tid, f"{name} ({share:.0%} while computing)")
    yield from step_events(shown.steps)
    yield from counter_events(shown.steps)
    tids = [tracks[lane] for lane in lanes]
    yield from transfer_events(transfers, tids, shown.arrivals, shown.requests, shown.steps)
    yield from conversation_events(shown.requests, lives, transfers)


def _shown(requests: Rows, steps: Rows, transfers: Rows, max_events: int, known: Mapping[int, LayerArrivals]) -> _Shown:
    """What began before the time at which ``max_events`` events would be passed."""
    cut_s = _cut_s(requests, steps, transfers, max_events, known)
    kept = tuple(rows[_starts(rows) < cut_s] for rows in (requests, steps, transfers))
    if not np.isfinite(cut_s):
        return _Shown(kept[0], kept[1], kept[2], cut_s, known)
    places = np.cumsum(_starts(transfers) < cut_s) - 1
    inside = {int(places[i]): layers for i, layers in known.items() if transfers["start_s"][i] < cut_s}
    return _Shown(kept[0], kept[1], kept[2], cut_s, inside)


def _starts(rows: Rows) -> _Floats:
    return rows["arrival_s" if "arrival_s" in (rows.dtype.names or ()) else "start_s"]


def _cut_s(requests: Rows, steps: Rows, transfers: Rows, max_events: int, known: Mapping[int, LayerArrivals]) -> float:
    """The time before which at most ``max_events`` events lie; infinite if all fit."""
    weights = [
        np.full(len(requests), _EVENTS_PER_REQUEST),
        np.full(len(steps), _EVENTS_PER_STEP),
        np.full(len(transfers), _EVENTS_PER_TRANSFER),
    ]
    for place, arrived in known.items():
        weights[2][place] += len(arrived.ends_s)
    times = np.concatenate([_starts(rows) for rows in (requests, steps, transfers)])
    order = np.argsort(times, kind="stable")
    total = np.cumsum(np.concatenate(weights)[order])
    first_over = int(np.searchsorted(total, max_events, side="right"))
    return float(times[order[first_over]]) if first_over < len(times) else float("inf")


def _share_computing(transfers: Rows, steps: Rows) -> float:
    """The share of the transfers' time in which an iteration computes. Its stall counts as its beginning."""
    starts_s = steps["start_s"] + steps["stall_s"]
    ends_s = steps["start_s"] + steps["duration_s"]
    order = np.argsort(starts_s, kind="stable")
    starts_s, lengths_s = starts_s[order], np.maximum(ends_s - starts_s, 0.0)[order]
    before_s = np.concatenate([[0.0], np.cumsum(lengths_s)])

    def computed_by(time_s: _Floats) -> _Floats:
        last = np.searchsorted(starts_s, time_s, side="right") - 1
        since_s = np.minimum(time_s - starts_s[last], lengths_s[last])
        return np.where(last < 0, 0.0, before_s[np.maximum(last, 0)] + since_s)

    whole_s = float((transfers["end_s"] - transfers["start_s"]).sum())
    if not len(steps) or whole_s <= 0:
        return 0.0
    return float((computed_by(transfers["end_s"]) - computed_by(transfers["start_s"])).sum()) / whole_s
