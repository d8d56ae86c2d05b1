"""``summary.json``: what a run's rows say, in one page. README.md defines every figure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .audit import audit_requests
from .columns import TIERS, Columns, RequestColumns, Rows, request_columns, step_columns, transfer_columns
from .distribution import distribution, gap_distribution
from .files import replace_text
from .records import RequestRecord, RunTotals, StepRecord, TransferRecord
from .saturation import is_saturated

SCHEMA = 1
_RUN_KEYS = (
    "id",
    "started",
    "version",
    "git_commit",
    "seed",
    "backend",
    "system",
    "workload",
    "model",
    "hardware",
    "status",
)

Section = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Slo:
    """What counts as good service. ``ttft_s``, ``tpot_s``: the most a request may take, in seconds; None: no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"slo {name} is {value}, expected more than 0 or null")


@dataclass(frozen=True, slots=True)
class Prices:
    """What the hardware costs in US dollars; None: unpriced. Compute per hour, memory per GiB (2^30 bytes) and hour."""

    compute_usd_per_hour: float | None = None
    dram_usd_per_gib_hour: float | None = None
    ssd_usd_per_gib_hour: float | None = None

    def __post_init__(self) -> None:
        for name in ("compute_usd_per_hour", "dram_usd_per_gib_hour", "ssd_usd_per_gib_hour"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"price {name} is {value}, expected 0 or more, or null")


@dataclass(frozen=True, slots=True)
class _Window:
    """The measured part of a run: from the first measured arrival to the last completion."""

    start_s: float
    stop_s: float

    @property
    def duration_s(self) -> float:
        return self.stop_s - self.start_s

    def rate(self, amount: float) -> float | None:
        """``amount`` per second; None if nothing was measured."""
        return float(amount) / self.duration_s if self.duration_s > 0 else None


def summarize(
    requests: RequestColumns | Iterable[RequestRecord],
    steps: Columns[StepRecord] | Iterable[StepRecord],
    transfers: Columns[TransferRecord] | Iterable[TransferRecord],
    run_info: Mapping[str, Any],
    *,
    totals: RunTotals | None = None,
    slo: Slo | None = None,
    prices: Prices | None = None,
) -> dict[str, Any]:
    """Reduce a run's records to the content of ``summary.json``.

    Parameters
    ----------
    requests, steps, transfers: records, or the columns of a ``RunRecorder``. Warm-up requests are excluded and counted.
    run_info: the keys of the ``run`` section (others are ignored, missing ones become null) and ``policies``.
    totals: what no row tells; without it there are no evictions and the peak is the largest of the steps.

    Raises
    ------
    RecordError
        If the records contradict themselves: an internal error, never the user's.
    """
    columns, totals = request_columns(requests), totals or RunTotals()
    rows = columns.rows()
    audit_requests(rows, columns.gaps.mistimed)
    measured = _where(rows, ~rows["warmup"])
    ok = _where(measured, measured["status"] == "ok")
    window = _window(measured, ok)
    step_rows, transfer_rows = step_columns(steps).rows(), transfer_columns(transfers).rows()
    inside = step_rows[(step_rows["start_s"] >= window.start_s) & (step_rows["start_s"] <= window.stop_s)]
    return {
        "schema": SCHEMA,
        "run": _run(run_info, rows),
        "workload": _workload(rows, measured, ok, window),
        "latency": _latency(ok, columns),
        "throughput": _throughput(ok, inside, window, slo or Slo()),
        "cache": _cache(ok, totals),
        "transfer": _transfer(transfer_rows, inside, window),
        "device": _device(step_rows, totals, window),
        "cost": _cost(ok, totals, prices or Prices(), window),
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``summary.json`` into ``folder`` in one piece and return its path.

    Raises
    ------
    OSError
        If it cannot be written.
    ValueError
        If a figure is not finite.
    """
    path = Path(folder) / "summary.json"
    replace_text(path, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return path


def _window(measured: Rows, ok: Rows) -> _Window:
    if not len(ok):
        return _Window(0.0, 0.0)
    return _Window(float(measured["arrival_s"].min()), float(ok["completion_s"].max()))


def _run(run_info: Mapping[str, Any], rows: Rows) -> Section:
    known = {key: run_info.get(key) for key in _RUN_KEYS}
    given = list(run_info.get("overrides") or [])
    policies = dict(run_info.get("policies") or {})
    return {**known, "saturated": is_saturated(rows), "overrides": given, "policies": policies}


def _workload(rows: Rows, measured: Rows, ok: Rows, window: _Window) -> Section:
    sums = ("prompt_tokens", "history_tokens", "reusable_tokens", "output_tokens")
    return {
        "conversations": len(np.unique(measured["conversation"])),
        "requests": len(measured),
        "warmup_requests": len(rows) - len(measured),
        "failed": len(measured) - len(ok),
        **{name: _sum(ok, name) for name in sums},
        "duration_s": window.duration_s if len(ok) else None,
    }


def _latency(ok: Rows, columns: RequestColumns) -> Section:
    n = ok["output_tokens"]
    many = ok[n > 1]
    e2e_s = ok["completion_s"] - ok["arrival_s"]
    return {
        "ttft_s": distribution(_ttft_s(ok)),
        "tpot_s": distribution(_tpot_s(many)),
        "itl_s": gap_distribution(columns.gaps),
        "e2e_s": distribution(e2e_s),
        "queue_s": distribution(ok["scheduled_s"] - ok["arrival_s"]),
        "normalized_s_per_token": distribution(e2e_s[n > 0] / n[n > 0]),
        "by_turn": [{"turn": turn, "ttft_s": distribution(_ttft_s(rows))} for turn, rows in _by_turn(ok)],
    }


def _ttft_s(rows: Rows) -> Any:
    return rows["first_token_s"] - rows["arrival_s"]


def _tpot_s(rows: Rows) -> Any:
    return (rows["completion_s"] - rows["first_token_s"]) / np.maximum(rows["output_tokens"] - 1, 1)


def _by_turn(rows: Rows) -> list[tuple[int, Rows]]:
    return [(int(turn), rows[rows["turn"] == turn]) for turn in np.unique(rows["turn"])]


def _throughput(ok: Rows, steps: Rows, window: _Window, slo: Slo) -> Section:
    good = np.ones(len(ok), bool)
    for limit_s, values_s in ((slo.ttft_s, _ttft_s(ok)), (slo.tpot_s, _tpot_s(ok))):
        good &= values_s <= limit_s if limit_s is not None else True
    limited = slo.ttft_s is not None or slo.tpot_s is not None
    return {
        "requests_per_s": window.rate(len(ok)),
        "output_tokens_per_s": window.rate(_sum(ok, "output_tokens")),
        "prefill_tokens_per_s": window.rate(_sum(steps, "prefill_tokens")),
        "goodput_requests_per_s": window.rate(good.sum()) if limited else None,
    }


def _cache(ok: Rows, totals: RunTotals) -> Section:
    reused = {tier: _sum(ok, f"reused_{tier}") for tier in TIERS}
    reusable = _sum(ok, "reusable_tokens")
    some = ok[ok["reusable_tokens"] > 0]
    return {
        "reused_tokens": reused,
        "recomputed_tokens": _sum(ok, "recomputed"),
        "dropped_tokens": _sum(ok, "dropped"),
        "preempted_tokens": _sum(ok, "preempted"),
        "hit_ratio": {
            "token": _ratio(sum(reused.values()), reusable),
            "page": _ratio(_sum(ok, "reused_pages"), _sum(ok, "reusable_pages")),
            "request": float((_reused(some) / some["reusable_tokens"]).mean()) if len(some) else None,
        },
        "hit_ratio_by_tier": {tier: _ratio(tokens, reusable) for tier, tokens in reused.items()},
        "hit_ratio_by_turn": [
            {"turn": turn, "token": _ratio(int(_reused(rows).sum()), _sum(rows, "reusable_tokens"))}
            for turn, rows in _by_turn(ok)
        ],
        "evicted_pages": dict(totals.evicted_pages),
        "adopted_pages": totals.adopted_pages,
        "faults": dict(totals.faults),
        "suspensions": _sum(ok, "suspensions"),
        **({} if totals.narrowed is None else {"narrowed": asdict(totals.narrowed)}),
    }


def _reused(rows: Rows) -> Any:
    return sum(rows[f"reused_{tier}"] for tier in TIERS)


def _transfer(transfers: Rows, steps: Rows, window: _Window) -> Section:
    inside = transfers[(transfers["start_s"] >= window.start_s) & (transfers["start_s"] <= window.stop_s)]
    links = {str(link): _sum(inside[inside["link"] == link], "bytes") for link in sorted(set(inside["link"]))}
    return {"bytes": links, "stall_s": float(steps["stall_s"].sum())}


def _device(steps: Rows, totals: RunTotals, window: _Window) -> Section:
    start_s = np.maximum(steps["start_s"], window.start_s)
    stop_s = np.minimum(steps["start_s"] + steps["duration_s"], window.stop_s)
    busy_s = float(np.maximum(stop_s - start_s, 0.0).sum())
    largest = int(steps["device_pages"].max()) if len(steps) else None
    peak = largest if totals.peak_pages is None else totals.peak_pages
    return {
        "busy_s": busy_s,
        "busy_fraction": window.rate(busy_s),
        "peak_pages": peak,
        "peak_kv_bytes": peak * totals.page_bytes if peak is not None and totals.page_bytes else None,
    }


def _cost(ok: Rows, totals: RunTotals, prices: Prices, window: _Window) -> Section:
    hours = window.duration_s / 3600
    gib = {"dram": totals.host_bytes / 2**30, "ssd": totals.disk_bytes / 2**30}
    parts = {
        "compute_usd": _priced(prices.compute_usd_per_hour, hours),
        "dram_usd": _priced(prices.dram_usd_per_gib_hour, gib["dram"] * hours),
        "ssd_usd": _priced(prices.ssd_usd_per_gib_hour, gib["ssd"] * hours),
    }
    used = [parts["compute_usd"], *(parts[f"{name}_usd"] for name, size in gib.items() if size > 0)]
    total = None if None in used else float(sum(used))  # type: ignore[arg-type]
    tokens = _sum(ok, "output_tokens")
    per_million = total / tokens * 1e6 if total is not None and tokens else None
    return {**parts, "total_usd": total, "usd_per_million_output_tokens": per_million}


def _where(rows: Rows, mask: Any) -> Rows:
    """The rows under ``mask``, without a copy if that is all of them."""
    return rows if mask.all() else rows[mask]


def _priced(price: float | None, amount: float) -> float | None:
    return None if price is None else price * amount


def _sum(rows: Rows, name: str) -> int:
    return int(rows[name].sum())


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
