"""D, the shape of every distribution in ``summary.json``: {count, mean, p50, p90, p95, p99, max}."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .gaps import TokenGaps

Distribution = dict[str, float | int | None]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def distribution(values: ArrayLike) -> Distribution:
    """Summarise ``values`` [n]. Quantiles interpolate linearly between order statistics; n = 0 gives nulls."""
    array = np.asarray(values, np.float64)
    return _described(array, np.ones(len(array), np.int64), float(array.mean()) if len(array) else 0.0)


def gap_distribution(gaps: TokenGaps) -> Distribution:
    """Summarise ``gaps`` as if each were listed as often as its weight says."""
    values, weights = gaps.weighted()
    described = _described(values, weights, gaps.mean_s)
    return described | {"max": gaps.max_s} if gaps.count else described


def _described(values: NDArray[np.float64], weights: NDArray[np.int64], mean: float) -> Distribution:
    if not len(values):
        return {"count": 0, "mean": None, **dict.fromkeys(QUANTILES), "max": None}
    order = np.argsort(values)
    values, below = values[order], np.cumsum(weights[order])
    quantiles = {name: _quantile(values, below, q) for name, q in QUANTILES.items()}
    return {"count": int(below[-1]), "mean": mean, **quantiles, "max": float(values[-1])}


def _quantile(values: NDArray[np.float64], below: NDArray[np.int64], q: float) -> float:
    """Quantile of sorted ``values`` of which ``below[i]`` copies are at or before index i."""
    rank = (int(below[-1]) - 1) * q
    floor = int(rank)
    low, high = values[np.searchsorted(below, [floor, min(floor + 1, int(below[-1]) - 1)], side="right")]
    return float(low + (high - low) * (rank - floor))
