"""What all batches say together about each: a model of few parameters, from which a point departs as far as it was
measured well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .design import Probe
from .steps import Centre, mean, midmean

Floats = NDArray[np.float64]
KNOT_RATIO = 4  # of the batch sizes between which the model is linear


def smoothed(times_s: Mapping[Probe, Sequence[float]], centre: Centre = midmean) -> dict[Probe, float]:
    """Seconds of each probe: between the ``centre`` of its own times and what the model of all probes says.

    The model: linear in tokens between knots, in sampled rows, and in segments, keys and query-key pairs of prefills
    and of decodes apart; no part is negative. A point keeps the share d^2 / (d^2 + e^2) of its distance d to the model,
    where e is the standard error of its times: on a quiet machine the tables are what was measured, on a busy one the
    model carries them.
    """
    probes = list(times_s)
    measured = np.array([centre(times_s[probe]) for probe in probes])
    error = _error_of_mean if centre is mean else _error_of_midmean
    errors = np.array([error(times_s[probe]) for probe in probes])
    features = _features(probes)
    weights = 1.0 / np.hypot(errors, 0.01 * measured)
    model = features @ non_negative(features * weights[:, None], measured * weights)
    distance = measured - model
    kept = distance**2 / np.maximum(distance**2 + errors**2, 1e-30)
    return dict(zip(probes, (model + kept * distance).tolist(), strict=True))


def _error_of_mean(times_s: Sequence[float]) -> float:
    return float(np.std(times_s) / max(len(times_s) - 1, 1) ** 0.5)


def _error_of_midmean(times_s: Sequence[float]) -> float:
    """The quartiles tell the noise, whatever its tails."""
    low, high = np.quantile(times_s, (0.25, 0.75))
    return float((high - low) / 1.35 * (1.2 / len(times_s)) ** 0.5)


def _features(probes: Sequence[Probe]) -> Floats:
    """[probes, parameters]."""
    segments = [probe.segments() for probe in probes]
    tokens = np.array([sum(part.length for part in parts) for parts in segments], np.float64)
    rows = [sum(part.sample for part in parts) for parts in segments]
    columns = [*_hats(tokens), np.array([row > 0 for row in rows]), np.array(rows)]
    for decoding in (False, True):
        kind = [[part for part in parts if (part.length == 1) == decoding] for parts in segments]
        columns.append(np.array([len(parts) for parts in kind]))
        columns.append(np.array([sum(part.context + part.length for part in parts) for parts in kind]))
        if not decoding:
            columns.append(np.array([sum(_pairs(part.length, part.context) for part in parts) for parts in kind]))
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def _pairs(length: int, context: int) -> float:
    return length * (context + (length + 1) / 2)


def _hats(tokens: Floats) -> list[Floats]:
    """Piecewise linear in ``tokens``: 1 at its knot, 0 at the others."""
    count = 1 + int(np.ceil(np.log(tokens.max()) / np.log(KNOT_RATIO)))
    knots = np.unique(np.append(np.minimum(KNOT_RATIO ** np.arange(count), tokens.max()), tokens.max()))
    return [np.interp(tokens, knots, np.eye(len(knots))[i]) for i in range(len(knots))]


def non_negative(features: Floats, values: Floats) -> Floats:
    """Least squares without negative parts: what would be negative is left out, the worst first."""
    scale = np.maximum(np.abs(features).max(axis=0), 1e-30)
    used = np.ones(features.shape[1], bool)
    while True:
        found = np.zeros(features.shape[1])
        found[used] = np.linalg.lstsq((features / scale)[:, used], values, rcond=None)[0]
        if (found >= 0).all():
            return np.asarray(found / scale)
        used[np.argmin(found)] = False
