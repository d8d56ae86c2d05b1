"""TTFT against the size of a lower tier, from runs that differ in ``memory.host_tokens`` or ``memory.disk_tokens``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .rows import Row
from .runs import Run, Setting

KEYS = ("memory.host_tokens", "memory.disk_tokens")


@dataclass(frozen=True, slots=True)
class SizeCurve:
    """One system over the sizes of a tier.

    Attributes
    ----------
    row: the system, as it is named and coloured; its runs are those of the largest size.
    sizes: tokens, ascending, at least two.
    p50_s, p99_s: time to first token, [seeds, sizes].
    """

    row: Row
    sizes: tuple[int, ...]
    p50_s: NDArray[np.float64]
    p99_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SizePanel:
    """The systems of one setting over the sizes of one tier. ``tier``: ``host`` or ``disk``."""

    setting: Setting
    tier: str
    curves: tuple[SizeCurve, ...]


def size_panels(runs: Sequence[Run]) -> Iterator[SizePanel]:
    """A panel for each setting and tier in which the command line varied the tier's size, over at least two sizes."""
    for key in KEYS:
        settings: dict[Setting, dict[str, list[Run]]] = {}
        for run in runs:
            if run.ok and _size(run, key) is not None and run.figure("latency", "ttft_s", "count"):
                settings.setdefault(_without(run.setting, key), {}).setdefault(run.label, []).append(run)
        for setting, systems in settings.items():
            curves = [curve for label, own in systems.items() if (curve := _curve(label, own, key)) is not None]
            if curves:
                yield SizePanel(setting, key.removeprefix("memory.").removesuffix("_tokens"), tuple(curves))


def _size(run: Run, key: str) -> int | None:
    """The tokens that the command line gave, or None where it left them to the hardware."""
    words = [word for word in run.info.get("overrides", []) if word.startswith(f"{key}=")]
    text = words[-1].partition("=")[2] if words else ""
    return int(text) if text.isdigit() else None


def _without(setting: Setting, key: str) -> Setting:
    return replace(setting, knobs=" ".join(w for w in setting.knobs.split() if not w.startswith(f"{key}=")))


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

    def quantiles(name: str) -> NDArray[np.float64]:
        rows = [[found[size][seed].figure("latency", "ttft_s", name) or 0.0 for size in sizes] for seed in seeds]
        return np.array(rows, np.float64)

    largest = tuple(found[sizes[-1]][seed] for seed in seeds)
    return SizeCurve(Row(label, label, largest), sizes, quantiles("p50"), quantiles("p99"))
