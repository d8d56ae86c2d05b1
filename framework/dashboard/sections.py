"""What a dashboard shows: sections of panels, by the names under which runs are logged. Knows nothing of wandb."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..metrics.tracking_rows import ITERATION, TIME

SYSTEM = "run.system"
SEEDS = "mean over runs of a system"


@dataclass(frozen=True, slots=True)
class Bars:
    """A bar for each system: the mean over its runs of each of ``metrics`` of the summary."""

    title: str
    metrics: Sequence[str]


@dataclass(frozen=True, slots=True)
class Points:
    """A point for each run: two metrics of the summary. ``config``: ``x`` is a key of the config instead."""

    title: str
    x: str
    y: str
    config: bool = False
    log: bool = False


@dataclass(frozen=True, slots=True)
class Lines:
    """Metrics of steps over an axis, a line for each run."""

    title: str
    axis: str
    metrics: Sequence[str]


@dataclass(frozen=True, slots=True)
class Pictures:
    """Figures that runs drew."""

    keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class Differences:
    """What differs between the configs of runs."""


Panel = Bars | Points | Lines | Pictures | Differences


@dataclass(frozen=True, slots=True)
class SectionSpec:
    """``text``: one line that says how to read it. ``needs``: the section of summary.json without which it is empty."""

    name: str
    text: str
    panels: Sequence[Panel]
    needs: str = "latency"


_TTFT, _NORMALIZED = "latency/ttft_s", "latency/normalized_s_per_token/mean"
_REQUESTS, _TOKENS = "throughput/requests_per_s", "throughput/output_tokens_per_s"
SECTIONS: tuple[SectionSpec, ...] = (
    SectionSpec(
        "Comparison over systems",
        f"Bars: {SEEDS}. Measured and simulated runs are never to be compared: filter by the tag torch or simulated.",
        (
            Bars("TTFT, median [s]", [f"{_TTFT}/p50"]),
            Bars("TTFT, 99th percentile [s]", [f"{_TTFT}/p99"]),
            Bars("Normalized latency [s/token]", [_NORMALIZED]),
            Bars("Output tokens per second", [_TOKENS]),
            Bars("Hit ratio of tokens", ["cache/hit_ratio/token"]),
            Differences(),
        ),
    ),
    SectionSpec(
        "Latency and throughput",
        "A point is a run; along a ladder of rates latency rises where a system saturates.",
        (
            Points("TTFT, median, by requests/s", _REQUESTS, f"{_TTFT}/p50", log=True),
            Points("TTFT, 99th percentile, by requests/s", _REQUESTS, f"{_TTFT}/p99", log=True),
            Points("Normalized latency by requests/s", _REQUESTS, _NORMALIZED, log=True),
            Points("TTFT, median, by rate asked for", "workload.rate", f"{_TTFT}/p50", config=True, log=True),
        ),
    ),
    SectionSpec(
        "Hit ratios",
        "Tokens that were in the cache, of those that could have been; where they were; what was computed again.",
        (
            Bars("Hit ratio by tier", [f"cache/hit_ratio_by_tier/{tier}" for tier in ("device", "host", "disk")]),
            Points("Hit ratio by device tokens", "memory.device_tokens", "cache/hit_ratio/token", config=True),
            Bars("Tokens computed again", ["cache/recomputed_tokens"]),
            Bars("Hit ratio of pages and requests", ["cache/hit_ratio/page", "cache/hit_ratio/request"]),
        ),
    ),
    SectionSpec(
        "Memory over time",
        "Pages in use by tier and requests that run and wait, on the run's clock.",
        (
            Lines("Pages on the device", TIME, ["memory/device_pages"]),
            Lines("Pages in host memory", TIME, ["memory/host_pages"]),
            Lines("Pages on disk", TIME, ["memory/disk_pages"]),
            Lines("Pages evicted from the device so far", TIME, ["memory/device_evicted"]),
            Lines("Requests that run and wait", TIME, ["queue/running", "queue/waiting"]),
            Lines("Output tokens per second", TIME, ["rate/output_tokens_per_s"]),
            Lines("Time waiting for loads, by iteration [s]", ITERATION, ["step/stall_s"]),
        ),
    ),
    SectionSpec(
        "Quality",
        "Of the replies that were judged against the full cache (task.quality_sample).",
        (
            Bars("KL divergence to the full cache [nats]", ["quality/kl_nats/mean"]),
            Bars("Top-1 agreement", ["quality/top1/mean"]),
            Bars("Bits per token, and of the full cache", [
                "quality/bits_per_token/mean", "quality/reference_bits_per_token/mean",
            ]),
            Points("KL divergence by output tokens per second", _TOKENS, "quality/kl_nats/mean"),
        ),
        needs="quality",
    ),
    SectionSpec(
        "Cache decisions",
        "Of task=replay: no time, the largest of its capacities.",
        (
            Bars("Hit ratio", ["replay/hit_ratio", "replay/infinite_hit_ratio"]),
            Bars("Evictions", ["replay/evictions"]),
        ),
        needs="replay",
    ),
    SectionSpec(
        "Figures",
        "As the runs drew them.",
        (Pictures(["figures/ttft_cdf", "figures/ttft_by_turn", "figures/reusable_tokens"]),),
    ),
)  # fmt: skip
