"""Measured times between which one may interpolate: over one axis, and over several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Work = Callable[[Sequence[Any]], Any]  # a point, or an array per axis -> what a time is proportional to


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds over one axis, piecewise linear; beyond the last point the last slope goes on (not below the last
    value), before the first the first value holds.

    Attributes
    ----------
    x: [points], strictly increasing, >= 0.
    seconds: [points], > 0.

    Raises
    ------
    ValueError
        If the arrays are empty or differ in length, or hold what they must not.
    """

    x: Floats
    seconds: Floats

    def __post_init__(self) -> None:
        x, seconds = np.asarray(self.x, dtype=np.float64), np.asarray(self.seconds, dtype=np.float64)
        if x.ndim != 1 or x.shape != seconds.shape or not len(x):
            raise ValueError(f"x of shape {x.shape} and seconds of shape {seconds.shape} must be rows of equal length")
        _check_axis("x", x)
        _check_times(seconds)
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "seconds", seconds)

    @property
    def slope(self) -> float:
        """Seconds per unit beyond the last point, >= 0."""
        if len(self.x) < 2:
            return 0.0
        return max(0.0, float((self.seconds[-1] - self.seconds[-2]) / (self.x[-1] - self.x[-2])))

    def at(self, x: float) -> float:
        """Seconds at ``x``."""
        beyond = x - float(self.x[-1])
        if beyond > 0:
            return float(self.seconds[-1]) + beyond * self.slope
        return float(np.interp(x, self.x, self.seconds))

    def covers(self, x: float) -> bool:
        """``x`` lies between the first and the last point."""
        return bool(self.x[0] <= x <= self.x[-1])

    def stepped(self) -> Curve:
        """For times of kernels that work in tiles of whole ``x``: between two points the time of the greater."""
        wide = np.nonzero(np.diff(self.x) > 1)[0]
        x, seconds = np.append(self.x, self.x[wide] + 1), np.append(self.seconds, self.seconds[wide + 1])
        order = np.argsort(x, kind="stable")
        return Curve(x[order], seconds[order])

    @classmethod
    def of_points(cls, x: Floats, seconds: Floats) -> Curve:
        """Sort the points; where several share an x, their median counts."""
        axis = np.unique(x)
        return cls(axis, np.array([np.median(seconds[x == value]) for value in axis]))


@dataclass(frozen=True, slots=True)
class Grid:
    """Seconds at the points of a grid, NaN where nothing was measured.

    Attributes
    ----------
    axes: each strictly increasing, >= 0.
    seconds: [len(axes[0]), len(axes[1]), ...], > 0 or NaN; at least one is measured.

    Raises
    ------
    ValueError
        If the shapes do not fit, or they hold what they must not.
    """

    axes: tuple[Floats, ...]
    seconds: Floats

    def __post_init__(self) -> None:
        axes = tuple(np.asarray(axis, dtype=np.float64) for axis in self.axes)
        seconds = np.asarray(self.seconds, dtype=np.float64)
        if seconds.shape != tuple(len(axis) for axis in axes) or not seconds.size:
            raise ValueError(f"seconds of shape {seconds.shape} must fit axes of {[len(axis) for axis in axes]} points")
        for i, axis in enumerate(axes):
            _check_axis(f"axes[{i}]", axis)
        _check_times(seconds[~np.isnan(seconds)])
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "seconds", seconds)

    @classmethod
    def of_points(cls, columns: Sequence[Floats], seconds: Floats) -> Grid:
        """The smallest grid that holds the points ``columns[axis][i]`` -> ``seconds[i]``, in any order; where several
        are equal, the last counts."""
        axes = tuple(np.unique(np.asarray(column, dtype=np.float64)) for column in columns)
        cells = np.full([len(axis) for axis in axes], np.nan)
        cells[tuple(np.searchsorted(axis, column) for axis, column in zip(axes, columns, strict=True))] = seconds
        return cls(axes, cells)

    def filled(self) -> Grid:
        """The holes between measured points filled: linearly along the axis on which the neighbours are nearest (by
        their ratio), over and over. What has no neighbours on both sides along any axis stays NaN."""
        values = self.seconds
        while np.isnan(values).any():
            fuller = _fill_once(self.axes, values)
            if np.array_equal(np.isnan(fuller), np.isnan(values)):
                break
            values = fuller
        return Grid(self.axes, values)

    def completed(self, work: Work) -> Grid:
        """:meth:`filled`, and what is left: with the ratio to ``work`` of the nearest known point before it, along the
        last axis first, or of the nearest behind it if there is none before."""
        seconds = self.filled().seconds
        if not np.isnan(seconds).any():
            return Grid(self.axes, seconds)
        roofs = work(np.meshgrid(*self.axes, indexing="ij"))
        ratio = seconds / roofs
        for axis in reversed(range(ratio.ndim)):
            ratio = _carry(ratio, axis)
        for axis in reversed(range(ratio.ndim)):
            ratio = np.flip(_carry(np.flip(ratio, axis), axis), axis)
        return Grid(self.axes, np.where(np.isnan(seconds), ratio * roofs, seconds))

    def points(self) -> tuple[list[Floats], Floats]:
        """The measured points, the inverse of :meth:`of_points`: columns and seconds, last axis fastest."""
        cells = np.nonzero(~np.isnan(self.seconds))
        return [axis[index] for axis, index in zip(self.axes, cells, strict=True)], self.seconds[cells]


def _fill_once(axes: tuple[Floats, ...], values: Floats) -> Floats:
    """Every hole that has measured neighbours on both sides along some axis."""
    known = ~np.isnan(values)
    nearest, filled = np.full(values.shape, np.inf), values.copy()
    for i, axis in enumerate(axes):
        index = np.arange(len(axis)).reshape([-1 if j == i else 1 for j in range(values.ndim)])
        below = np.maximum.accumulate(np.where(known, index, -1), axis=i)
        above = np.flip(np.minimum.accumulate(np.flip(np.where(known, index, len(axis)), axis=i), axis=i), axis=i)
        inside = ~known & (below >= 0) & (above < len(axis))
        low, high = np.where(inside, below, 0), np.where(inside, above, 0)
        ratio = np.log((axis[high] + 1) / (axis[low] + 1))
        share = (axis[index] - axis[low]) / np.where(inside, axis[high] - axis[low], 1.0)
        first, last = (np.take_along_axis(values, at, axis=i) for at in (low, high))
        better = inside & (ratio < nearest)
        filled = np.where(better, first + (last - first) * share, filled)
        nearest = np.where(better, ratio, nearest)
    return filled


def _carry(values: Floats, axis: int) -> Floats:
    """Every NaN takes the last known value before it on ``axis``."""
    index = np.arange(values.shape[axis]).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    last = np.maximum.accumulate(np.where(np.isnan(values), 0, index), axis=axis)
    return np.asarray(np.take_along_axis(values, last, axis=axis))


def _check_axis(name: str, axis: Floats) -> None:
    if not np.isfinite(axis).all() or axis[0] < 0 or (np.diff(axis) <= 0).any():
        raise ValueError(f"{name}={axis.tolist()[:8]} ... must be finite, >= 0 and strictly increasing")


def _check_times(seconds: Floats) -> None:
    if not len(seconds) or not np.isfinite(seconds).all() or (seconds <= 0).any():
        wrong = seconds[~(np.isfinite(seconds) & (seconds > 0))]
        found = f"seconds={wrong[0]}" if len(wrong) else "no seconds"
        raise ValueError(f"{found}: times must be finite and > 0")
