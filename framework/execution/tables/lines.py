"""Piecewise linear functions on plain floats: looked up, and summed over stretches of steps in closed form."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise


class Line:
    """A piecewise linear function: constant before its first point, of slope ``beyond`` after its last.

    Parameters
    ----------
    xs: strictly increasing. ys: the value at each.
    """

    __slots__ = ("_slopes", "xs", "ys")

    def __init__(self, xs: Sequence[float], ys: Sequence[float], beyond: float) -> None:
        self.xs, self.ys = xs, ys
        inner = [(y1 - y0) / (x1 - x0) for (x0, x1), (y0, y1) in zip(pairwise(xs), pairwise(ys), strict=True)]
        self._slopes = [*inner, beyond]

    def at(self, x: float) -> float:
        """The value at ``x``. O(log points)."""
        i = bisect_right(self.xs, x) - 1
        return self.ys[0] if i < 0 else self.ys[i] + (x - self.xs[i]) * self._slopes[i]

    def total(self, start: float, steps: int) -> float:
        """The sum of the values at ``start``, ``start`` + 1, ... (``steps`` of them). O(points)."""
        xs, last = self.xs, len(self.xs) - 1
        done, total = 0, 0.0
        while done < steps:
            x, left = start + done, steps - done
            i = bisect_right(xs, x) - 1
            count = left if i >= last else min(left, max(1, math.ceil(xs[i + 1] - x)))
            if i < 0:
                total += count * self.ys[0]
            else:
                slope = self._slopes[i]
                total += count * (self.ys[i] + (x - xs[i]) * slope) + slope * (count * (count - 1) // 2)
            done += count
        return total


class Cells:
    """A full grid of values, multilinear in between; outside, the nearest value on its rim."""

    __slots__ = ("_axes", "_strides", "_values")

    def __init__(self, axes: Sequence[Sequence[float]], values: Sequence[float]) -> None:
        self._axes = [list(axis) for axis in axes]
        self._values = list(values)  # last axis fastest
        strides = [1]
        for axis in reversed(self._axes[1:]):
            strides.append(strides[-1] * len(axis))
        self._strides = strides[::-1]

    def clip(self, point: Sequence[float]) -> tuple[float, ...]:
        """The nearest point inside."""
        axes = self._axes
        return tuple([axis[0] if x < axis[0] else min(x, axis[-1]) for x, axis in zip(point, axes, strict=True)])

    def at(self, *point: float) -> float:
        """The value at ``point``. O(log points + 2 ** axes)."""
        corners = [(0, 1.0)]  # (index of a value, its weight)
        for x, axis, stride in zip(point, self._axes, self._strides, strict=True):
            i = bisect_right(axis, x) - 1
            if i < 0 or i >= len(axis) - 1:
                i = max(i, 0)
                corners = [(at + i * stride, weight) for at, weight in corners]
                continue
            share = (x - axis[i]) / (axis[i + 1] - axis[i])
            low = [(at + i * stride, weight * (1.0 - share)) for at, weight in corners]
            corners = low + [(at + (i + 1) * stride, weight * share) for at, weight in corners] if share else low
        return sum([self._values[at] * weight for at, weight in corners])
