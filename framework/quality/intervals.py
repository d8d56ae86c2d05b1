"""Means over episodes and how sure they are: percentile bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000
_TAILS = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over ``n`` episodes and its 95 % confidence interval; ``low`` and ``high`` are None for one episode."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def section(self) -> dict[str, float | int | None]:
        """As it stands in ``summary.json``."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


class Bootstrap:
    """Draws episodes again, the same ones for as many episodes: figures of one instance are paired. Deterministic."""

    def __init__(self) -> None:
        self._drawn: dict[int, NDArray[np.float64]] = {}

    def interval(self, values: ArrayLike, weights: ArrayLike | None = None) -> Interval | None:
        """The mean of ``values``, one per episode, over those that are not NaN; None where there is none.

        ``weights``: the mean is sum(weights * values) / sum(weights), resampled together.
        """
        found = np.asarray(values, np.float64).reshape(-1)
        held = np.ones(len(found)) if weights is None else np.asarray(weights, np.float64).reshape(-1)
        known = ~np.isnan(found) & (held > 0)
        found, held = found[known], held[known]
        if not len(found):
            return None
        mean = float((found * held).sum() / held.sum())
        if len(found) == 1:
            return Interval(mean, None, None, 1)
        if float(np.ptp(found)) == 0.0:
            return Interval(mean, mean, mean, len(found))
        drawn = self._draws(len(found))
        low, high = np.percentile((drawn @ (found * held)) / (drawn @ held), _TAILS)
        return Interval(mean, float(low), float(high), len(found))

    def differs(self, one: ArrayLike, other: ArrayLike) -> bool | None:
        """Whether paired values differ in their mean at the 95 % level; None with fewer than two pairs."""
        difference = self.interval(np.asarray(one, np.float64) - np.asarray(other, np.float64))
        if difference is None or difference.low is None or difference.high is None:
            return None
        return not difference.low <= 0 <= difference.high

    def _draws(self, n: int) -> NDArray[np.float64]:
        """How often each value is drawn, [RESAMPLES, n]."""
        if n not in self._drawn:
            chosen = np.random.default_rng(n).integers(0, n, (RESAMPLES, n))
            flat = (chosen + np.arange(RESAMPLES)[:, None] * n).ravel()
            self._drawn[n] = np.bincount(flat, minlength=RESAMPLES * n).reshape(RESAMPLES, n).astype(np.float64)
        return self._drawn[n]
