"""Latency and hits against the size of a tier, from runs that differ in ``memory.device_tokens``, ``host_tokens`` or
``disk_tokens``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .rows import Row
from .runs import Run, Setting

KEYS = ("memory.device_tokens", "memory.host_tokens", "memory.disk_tokens")


@dataclass(frozen=True, slots=True)
class SizeCurve:
    """One system over the sizes of a tier.

    Attributes
    ----------
    row: the system, as it is named and coloured; its runs are those of the largest size.
    sizes: tokens, ascending, at least two.
    p50_s, p99_s: time to first token, [seeds, sizes].
    hits: reused / reusable tokens, [seeds, sizes]; NaN where nothing is reusable.
    """

    row: Row
    sizes: tuple[int, ...]
    p50_s: NDArray[np.float64]
    p99_s: NDArray[np.float64]
    hits: NDArray[np.float64]

    @property
    def misses(self) -> NDArray[np.float64]:
        """What ``hits`` lacks to 1, at least 1e-4: a logarithmic axis has no 0."""
        return np.maximum(1.0 - self.hits, 1e-4)


@dataclass(frozen=True, slots=True)
class SizePanel:
    """The systems of one setting over the sizes of one tier. ``tier``: ``device``, ``host`` or ``disk``."""

    setting: Setting
    tier: str
    curves: tuple[SizeCurve, ...]


def size_panels(runs: Sequence[Run]) -> Iterator[SizePanel]:
    """A panel for each setting and tier in which the command line varied the tier's size, over at least two sizes."""
    runs = list(runs)
    for key in KEYS:
        settings: dict[Setting, dict[str, list[Run]]] = {}
        for run in runs:
            if run.ok and _size(run, key) is not None and run.figure("latency", "ttft_s", "count"):
                settings.setdefault(run.setting.without(key), {}).setdefault(run.label, []).append(run)
        for setting, systems in settings.items():
            curves = [curve for label, own in systems.items() if (curve := _curve(label, own, key)) is not None]
            if curves:
                yield SizePanel(setting, key.removeprefix("memory.").removesuffix("_tokens"), tuple(curves))


def _size(run: Run, key: str) -> int | None:
    """The tokens that the command line gave, or None where it left them to the hardware."""
    text = run.knob(key) or ""
    return int(text) if text.isdigit() else None


def _curve(label: str, runs: Sequence[Run], key: str) -> SizeCurve | None:
    """The sizes that every seed has; None with fewer than two."""
    found: dict[int, dict[int, Run]] = {}
    for run in runs:
        size = _size(run, key)
        assert size is not None
        found.setdefault(size, {})[int(run.info["seed"] or 0)] = run
    sizes = tuple(sorted(found))
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in found.values())))
    if len(sizes) < 2 or not seeds:
        return None

    def figures(*path: str) -> NDArray[np.float64]:
        rows = [[found[size][seed].figure(*path) for size in sizes] for seed in seeds]
        return np.array([[np.nan if one is None else one for one in row] for row in rows], np.float64)

    largest = Row(label, label, tuple(found[sizes[-1]][seed] for seed in seeds))
    p50_s, p99_s = (figures("latency", "ttft_s", name) for name in ("p50", "p99"))
    return SizeCurve(largest, sizes, p50_s, p99_s, figures("cache", "hit_ratio", "token"))
