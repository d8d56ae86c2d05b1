"""Attention of a whole model from measured tables: interpolated inside what was measured, scaled outside by a roofline.

Several prompts in one batch take what each takes alone, launched once: against measured batches of 2 to 8 equal prompts
(aiconfigurator; A100, L40S, H100) that is within about 10 %. What lies beyond a table takes the time at the nearest
measured point times the ratio of the roofline's times there and here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .tables.curves import Grid, Work
from .tables.lines import Cells, Line
from .tables.operators import AttentionTables, Uneven


@dataclass(frozen=True, slots=True)
class Roofline:
    """Seconds per query-key pair and per key read, all layers together; the greater of both counts."""

    pair_s: float
    key_s: float

    def prefill(self, point: Sequence[Any]) -> Any:
        """One segment: (queries, context before them)."""
        queries, context = point
        return np.maximum(queries * (context + (queries + 1) / 2) * self.pair_s, (queries + context) * self.key_s)

    def prefills(self, point: Sequence[Any]) -> Any:
        """Equal prompts: (sequences, queries of each)."""
        sequences, queries = point
        return sequences * self.prefill((queries, 0.0))

    def decode(self, point: Sequence[Any]) -> Any:
        """Equal sequences of one query: (sequences, keys of each)."""
        sequences, keys = point
        return sequences * keys * max(self.pair_s, self.key_s)

    def mixed(self, point: Sequence[Any]) -> Any:
        """One segment and equal decoding sequences: (queries, context, sequences, keys of each)."""
        queries, context, sequences, keys = point
        return self.prefill((queries, context)) + self.decode((sequences, keys))


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompt segments of one batch: (queries, keys that the last of them sees) of each."""

    segments: tuple[tuple[int, int], ...]

    @property
    def queries(self) -> int:
        """Of all segments together."""
        return sum([queries for queries, _ in self.segments])

    @property
    def context(self) -> float:
        """Tokens before one segment of as many queries that has as many query-key pairs; 0 if even that has more."""
        queries = self.queries
        pairs = sum([count * (keys - 0.5 * (count - 1)) for count, keys in self.segments])
        return max(0.0, pairs / queries - (queries + 1) / 2)


@dataclass(frozen=True, slots=True)
class Decodes:
    """The decoding sequences of one batch: how many, the keys they see together, the fewest and most that one sees."""

    count: int
    keys: int
    shortest: int
    longest: int

    @property
    def mean(self) -> float:
        """Keys of one sequence on average."""
        return self.keys / self.count

    @property
    def share(self) -> float:
        """How near the mean is to the longest: 0 .. 1."""
        return (self.mean - self.shortest) / (self.longest - self.shortest) if self.longest > self.shortest else 1.0


class Measured:
    """A grid of times: multilinear inside, scaled by ``work`` beyond its far ends, constant before its near ones."""

    def __init__(self, grid: Grid, work: Work) -> None:
        self._work = work
        seconds = grid.completed(work).seconds
        self._cells = Cells([axis.tolist() for axis in grid.axes], seconds.ravel().tolist())
        self.least_s = float(seconds.min())

    def at(self, *point: float) -> float:
        """Seconds at ``point``."""
        inside = self._cells.clip(point)
        seconds = self._cells.at(*inside)
        if inside == point or all(x >= y for x, y in zip(inside, point, strict=True)):
            return seconds
        beyond = [max(x, y) for x, y in zip(inside, point, strict=True)]
        return float(seconds * self._work(beyond) / self._work(inside))

    def covers(self, *point: float) -> bool:
        """``point`` lies within the axes."""
        return self._cells.clip(point) == point


class DecodeLines:
    """Attention of equal decoding sequences: for each batch size a line over the keys of one sequence."""

    def __init__(self, grid: Grid, work: Work) -> None:
        self._sizes, keys = grid.axes
        self._keys = keys.tolist()
        self._seconds = grid.completed(work).seconds
        self._lines: dict[int, Line] = {}

    def line(self, sequences: int) -> Line:
        """Of ``sequences`` sequences."""
        line = self._lines.get(sequences)
        if line is None:
            inside = min(max(float(sequences), float(self._sizes[0])), float(self._sizes[-1]))
            scale = max(1.0, sequences / inside)
            row = [scale * float(np.interp(inside, self._sizes, column)) for column in self._seconds.T]
            line = self._lines[sequences] = Line(self._keys, row, row[-1] / self._keys[-1])
        return line

    def steps_inside(self, sequences: int, mean: float, steps: int) -> int:
        """How many of ``steps`` steps see no more keys than were measured."""
        if not self._sizes[0] <= sequences <= self._sizes[-1]:
            return 0
        return max(0, min(steps, int(self._keys[-1] - mean) + 1))


class AttentionTimes:
    """Seconds of attention, all layers together. Asked only for what has a table: ``decode`` and ``prefill`` are None
    otherwise."""

    def __init__(self, tables: AttentionTables, roofline: Roofline) -> None:
        self.decode = DecodeLines(tables.decode, roofline.decode) if tables.decode is not None else None
        self.prefill = _measured(tables.prefill, roofline.prefill)
        self.mixed = _measured(tables.mixed, roofline.mixed) if self.prefill is not None else None
        self._prefills = _measured(tables.prefills, roofline.prefills)
        self._square = tables.prefill is not None and len(tables.prefill.axes[1]) == 1
        self._uneven_decode = _corrections(tables.uneven_decode)
        self._uneven_mixed = _corrections(tables.uneven_mixed)

    @property
    def uneven(self) -> bool:
        """Whether the lengths of decoding sequences matter beyond their sum."""
        return self._uneven_decode is not None or self._uneven_mixed is not None

    def decode_s(self, decodes: Decodes, steps: int) -> float:
        """``steps`` steps of equal sequences that all grow by one key a step; the keys are those of the first."""
        assert self.decode is not None
        return self.decode.line(decodes.count).total(decodes.mean, steps)

    def uneven_s(self, decodes: Decodes) -> float:
        """What the unequal lengths of ``decodes`` add to each of their steps; the same in all of a stretch."""
        if self._uneven_decode is None or decodes.longest <= decodes.shortest:
            return 0.0
        token_s = self._uneven_decode.at(decodes.count, decodes.share)
        return max(0.0, token_s) * (decodes.longest - decodes.mean)

    def prefill_s(self, prompts: Prompts) -> float:
        """Prompts alone: launched once; what each takes beyond that adds up."""
        assert self.prefill is not None
        least_s = self.prefill.least_s
        beyond_s = sum([max(0.0, self._one_s(queries, keys) - least_s) for queries, keys in prompts.segments])
        if self._prefills is None or len(prompts.segments) < 2:
            return least_s + beyond_s
        each = prompts.queries / len(prompts.segments)
        equal_s = self._prefills.at(float(len(prompts.segments)), each)
        return (
            (least_s + beyond_s)
            * equal_s
            / (least_s + len(prompts.segments) * max(0.0, self.prefill.at(each, 0.0) - least_s))
        )

    def mixed_s(self, prompts: Prompts, decodes: Decodes) -> float:
        """Prompts and decoding sequences in one batch."""
        assert self.prefill is not None
        if self.mixed is None:
            return self.prefill_s(prompts) + self.decode_s(decodes, 1) + self.uneven_s(decodes)
        queries, context = float(prompts.queries), prompts.context
        total_s = self.mixed.at(queries, context, float(decodes.count), decodes.mean)
        if len(prompts.segments) > 1:
            total_s += self.prefill_s(prompts) - self.prefill.at(queries, context)
        if self._uneven_mixed is not None and decodes.longest > decodes.shortest:
            token_s = self._uneven_mixed.at(queries, decodes.count, decodes.share, decodes.mean)
            total_s += token_s * (decodes.longest - decodes.mean)
        return max(total_s, self.mixed.least_s)

    def _one_s(self, queries: int, keys: int) -> float:
        """One prompt alone; where none with context was measured, as one without context of as many pairs."""
        assert self.prefill is not None
        if self._square and keys > queries:
            return self.prefill.at((2.0 * queries * (keys - 0.5 * (queries - 1))) ** 0.5, 0.0)
        return self.prefill.at(float(queries), float(keys - queries))


def _measured(grid: Grid | None, work: Work) -> Measured | None:
    return None if grid is None else Measured(grid, work)


def _corrections(uneven: Uneven | None) -> Cells | None:
    return None if uneven is None else Cells([axis.tolist() for axis in uneven.axes], uneven.seconds.ravel().tolist())
