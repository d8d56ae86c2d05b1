"""From the times of batches to operators: what is left of a batch once the parts that are known are taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..execution.tables import AttentionTables, Curve, Grid
from .design import Operator, Probe, pairs
from .smoothing import smoothed
from .steps import Centre, midmean, spread

LEAST_S = 1e-9  # tables hold times above 0: what is lost in the noise

Seconds = Mapping[Probe, float]


@dataclass(frozen=True, slots=True)
class StepTables:
    """The executor's part of the tables."""

    dense: Curve
    head: Curve
    attention: AttentionTables


def fit_steps(times_s: Mapping[Probe, Sequence[float]], centre: Centre = midmean) -> StepTables:
    """The tables that the times of :func:`.design.table_probes` give; ``centre``: what stands for several of one batch.

    A batch of chunks gives ``dense``; the same batch with and without sampling, one after the other, ``head``; what a
    prefill or a decode takes beyond ``dense`` is its attention. So the sums are what was measured.
    """
    seconds = smoothed({probe: times for probe, times in times_s.items() if probe.operator != "mixed"}, centre)
    by_kind: dict[Operator, list[Probe]] = {}
    for probe in seconds:
        by_kind.setdefault(probe.operator, []).append(probe)
    dense = _curve([p.tokens for p in by_kind["dense"]], [seconds[p] for p in by_kind["dense"]])
    heads = [(p.sequences, seconds[p] - seconds[plain]) for plain, p in pairs(by_kind["head"])]
    head = _curve([rows for rows, _ in heads], [more_s for _, more_s in heads])
    prefill = _grid(seconds, by_kind["prefill"], dense, ("tokens", "context"))
    decode = _grid(seconds, by_kind["decode"], dense, ("sequences", "keys"))
    return StepTables(dense, head, AttentionTables(prefill=prefill, decode=decode))


def _curve(x: Sequence[float], seconds: Sequence[float]) -> Curve:
    """More work never takes less: what the noise says otherwise is levelled."""
    order = np.argsort(x)
    rising = _isotonic(np.array(seconds)[order])
    return Curve(np.array(x, np.float64)[order], np.maximum(rising, LEAST_S))


def _grid(seconds: Seconds, probes: Sequence[Probe], dense: Curve, axes: tuple[str, str]) -> Grid:
    columns = [np.array([getattr(p, axis) for p in probes], np.float64) for axis in axes]
    left = [seconds[p] - dense.at(p.tokens + p.sequences) for p in probes]
    return Grid.of_points(columns, np.maximum(left, LEAST_S))


def _isotonic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rising sequence nearest to ``values`` (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (one, n), (other, m) = blocks[-2:]
            blocks[-2:] = [((one * n + other * m) / (n + m), n + m)]
    return np.concatenate([np.full(n, value) for value, n in blocks])


def noise(times_s: Mapping[Probe, Sequence[float]]) -> dict[str, float]:
    """Of each kind of batch, the median over its points of their spread."""
    found: dict[str, list[float]] = {}
    for probe, taken in times_s.items():
        found.setdefault(probe.operator, []).append(spread(taken))
    return {kind: float(np.median(values)) for kind, values in found.items()}
