"""What a tracker shows of a run while it runs: steps and requests added up to rows at a bounded rate, and axes."""

from __future__ import annotations

import time
from collections.abc import Mapping

from .records import RequestRecord, StepRecord

Row = dict[str, float]
TIME, ITERATION, REQUESTS = "time_s", "iteration", "requests_done"
_SUMS = ("n_steps", "prefill_tokens", "decode_tokens", "recompute_tokens", "stall_s", "duration_s")
_PAGES = ("device_pages", "host_pages", "disk_pages")
_EVICTED = ("device_evicted", "host_evicted", "disk_evicted")
AXES = (TIME, ITERATION, REQUESTS)
METRICS: Mapping[str, tuple[str, str]] = {
    **{f"step/{name}": (ITERATION, "mean") for name in _SUMS},
    **{f"queue/{name}": (TIME, "max") for name in ("running", "waiting")},
    **{f"memory/{name}": (TIME, "max") for name in (*_PAGES, *_EVICTED)},
    "rate/output_tokens_per_s": (TIME, "mean"),
    "rate/computed_tokens_per_s": (TIME, "mean"),
    "request/failed": (REQUESTS, "max"),
    "request/mean_ttft_s": (REQUESTS, "mean"),
    "request/mean_e2e_s": (REQUESTS, "mean"),
    "request/hit_ratio": (REQUESTS, "mean"),
}
"""By metric: the axis it is drawn over, and what of its rows stands in the run's summary."""


class RowSampler:
    """Adds steps and requests up to rows: at most ``max_rows_per_s`` per second of wall time, ``max_rows`` in all."""

    def __init__(self, max_rows_per_s: float, max_rows: int) -> None:
        self._interval_s = 1.0 / max_rows_per_s
        self._rows_left = max_rows
        self._due_s = time.monotonic()
        self._sums = dict.fromkeys(_SUMS, 0.0)
        self._last: StepRecord | None = None
        self._end_s = 0.0
        self._iteration = 0
        self._completed = self._failed = 0
        self._recent: list[RequestRecord] = []

    def step(self, record: StepRecord) -> Row | None:
        """The row that is due now, if one is."""
        self._last = record
        self._iteration += record.n_steps
        sums = self._sums
        for name in _SUMS:
            sums[name] += getattr(record, name)
        now_s = time.monotonic()
        if now_s < self._due_s or self._rows_left <= 1:
            return None
        self._due_s = now_s + self._interval_s
        return self.rest()

    def request(self, record: RequestRecord) -> None:
        """Count a request that finished or failed."""
        if record.status == "ok":
            self._completed += 1
            self._recent.append(record)
        else:
            self._failed += 1

    def rest(self) -> Row | None:
        """What has been added up since the last row; None if nothing has."""
        if self._last is None:
            return None
        last, sums, recent = self._last, self._sums, self._recent
        end_s = last.start_s + last.duration_s
        row: Row = {TIME: end_s, ITERATION: self._iteration, REQUESTS: self._completed + self._failed}
        row |= {f"step/{name}": value for name, value in sums.items()}
        row |= {"queue/running": last.running, "queue/waiting": last.waiting}
        row |= {f"memory/{name}": getattr(last, name) for name in (*_PAGES, *_EVICTED)}
        if (passed_s := end_s - self._end_s) > 0:
            row["rate/output_tokens_per_s"] = sums["decode_tokens"] / passed_s
            row["rate/computed_tokens_per_s"] = (sums["decode_tokens"] + sums["prefill_tokens"]) / passed_s
        row["request/failed"] = self._failed
        row |= _of_requests(recent)
        self._last, self._sums, self._recent, self._end_s = None, dict.fromkeys(_SUMS, 0.0), [], end_s
        self._rows_left -= 1
        return row


def _of_requests(recent: list[RequestRecord]) -> Row:
    if not recent:
        return {}
    row = {
        "request/mean_ttft_s": sum([r.first_token_s - r.arrival_s for r in recent]) / len(recent),
        "request/mean_e2e_s": sum([r.completion_s - r.arrival_s for r in recent]) / len(recent),
    }
    if reusable := sum([r.reusable_tokens for r in recent]):
        reused = sum([r.reused_device + r.reused_host + r.reused_disk + r.reused_remote for r in recent])
        row["request/hit_ratio"] = reused / reusable
    return row
