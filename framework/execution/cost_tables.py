"""The cost model with measured operators: interpolated where a table covers, the roofline, scaled to the nearest
measured point, where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .contract import ModelShape
from .cost import EVEN, CostModel, Extremes
from .cost_attention import AttentionTimes, Decodes, Prompts, Roofline
from .hardware import Hardware
from .tables.curves import Curve
from .tables.lines import Line
from .tables.operators import OperatorTables


@dataclass(slots=True)
class Shares:
    """Simulated seconds by where they came from: between measured points, beyond them, or the roofline alone."""

    measured_s: float = 0.0
    extrapolated_s: float = 0.0
    roofline_s: float = 0.0

    def fractions(self) -> dict[str, float]:
        """The share of each, summing to 1; all 0 if nothing ran."""
        total_s = (self.measured_s + self.extrapolated_s + self.roofline_s) or 1.0
        return {
            "measured": self.measured_s / total_s,
            "extrapolated": self.extrapolated_s / total_s,
            "roofline": self.roofline_s / total_s,
        }


class TableCosts(CostModel):
    """:class:`.cost.CostModel` with ``tables`` of measured times; what they lack is the roofline's."""

    def __init__(self, shape: ModelShape, hardware: Hardware, page_size: int, tables: OperatorTables) -> None:
        super().__init__(shape, hardware, page_size)
        self.tables = tables
        self._dense = _line(tables.dense)
        self._head = _line(tables.head)
        self._times = AttentionTimes(tables.attention, Roofline(self._pair_s, self._key_s))
        self.uneven = self._times.uneven
        self._iteration_s = hardware.iteration_overhead_s if tables.iteration_s is None else tables.iteration_s
        self._prompt_s = tables.prompt_s or 0.0
        self._sequence_s = hardware.sequence_overhead_s if tables.sequence_s is None else tables.sequence_s

    def recompute_s(self, start: int, stop: int) -> float:
        """See :meth:`.cost.CostModel.recompute_s`."""
        tokens = stop - start
        if tokens <= 0:
            return 0.0
        if self._times.prefill is None:
            return super().recompute_s(start, stop)
        return self._model_s(tokens) + self._times.prefill_s(Prompts(((tokens, stop),)))

    def mixed_s(
        self, query_lens: Sequence[int], kv_lens: Sequence[int], sampled: int, decodes: int, decode_keys: int
    ) -> float:
        """See :meth:`.cost.CostModel.mixed_s`."""
        if self._times.prefill is None:
            return super().mixed_s(query_lens, kv_lens, sampled, decodes, decode_keys)
        prompts, others = _split(query_lens, kv_lens, decodes, decode_keys)
        base_s = self._dense_s(prompts.queries + others.count, len(query_lens) + decodes, sampled + decodes)
        return base_s + self._both_s(prompts, others)

    def count_mixed(
        self,
        shares: Shares,
        query_lens: Sequence[int],
        kv_lens: Sequence[int],
        sampled: int,
        decodes: int,
        decode_keys: int,
    ) -> None:
        """Add the parts of :meth:`mixed_s` to ``shares``."""
        tokens, segments = sum(query_lens) + decodes, len(query_lens) + decodes
        self._count_dense(shares, tokens, segments, sampled + decodes, 1)
        all_s = self.mixed_s(query_lens, kv_lens, sampled, decodes, decode_keys)
        attention_s = all_s - self._dense_s(tokens, segments, sampled + decodes)
        if self._times.prefill is None:
            shares.roofline_s += attention_s
        elif self._covers(*_split(query_lens, kv_lens, decodes, decode_keys)):
            shares.measured_s += attention_s
        else:
            shares.extrapolated_s += attention_s

    def count_decode(self, shares: Shares, sequences: int, keys: int, steps: int) -> None:
        """Add the parts of ``steps`` decode steps to ``shares``."""
        self._count_dense(shares, sequences, sequences, sequences, steps)
        self._count_decode(shares, sequences, keys, steps)

    def _count_dense(self, shares: Shares, tokens: int, segments: int, sampled: int, steps: int) -> None:
        _add(shares, self._dense, tokens, steps * self._model_s(tokens))
        _add(shares, self._head, sampled, steps * self._head_s(sampled))
        if self.tables.iteration_s is None:
            shares.roofline_s += steps * self._overhead_s(segments)
        else:
            shares.measured_s += steps * self._overhead_s(segments)

    def _count_decode(self, shares: Shares, sequences: int, keys: int, steps: int) -> None:
        lines = self._times.decode
        total_s = self._sum_s(0.0, sequences, keys, steps)
        if lines is None:
            shares.roofline_s += total_s
            return
        inside = lines.steps_inside(sequences, keys / sequences, steps)
        inside_s = self._sum_s(0.0, sequences, keys, inside) if inside else 0.0
        shares.measured_s += inside_s
        shares.extrapolated_s += total_s - inside_s

    def _covers(self, prompts: Prompts, decodes: Decodes) -> bool:
        times, queries, context = self._times, float(prompts.queries), prompts.context
        if decodes.count and times.mixed is not None:
            return times.mixed.covers(queries, context, float(decodes.count), decodes.mean)
        assert times.prefill is not None
        return times.prefill.covers(queries, context)

    def _attention_s(self, query_lens: NDArray[np.int64], kv_lens: NDArray[np.int64]) -> float:
        if self._times.prefill is None:
            return super()._attention_s(query_lens, kv_lens)
        return self._both_s(*_split(query_lens.tolist(), kv_lens.tolist(), 0, 0))

    def _both_s(self, prompts: Prompts, decodes: Decodes) -> float:
        assert self._times.prefill is not None
        if not prompts.segments:
            return self.decode_s(decodes.count, decodes.keys, 1, (decodes.shortest, decodes.longest), 0.0)
        engine_s = len(prompts.segments) * self._prompt_s
        if not decodes.count:
            return engine_s + self._times.prefill_s(prompts)
        if self._times.mixed is None and self._times.decode is None:
            return engine_s + self._times.prefill_s(prompts) + decodes.keys * self._decode_key_s
        return engine_s + self._times.mixed_s(prompts, decodes)

    def _uneven_s(self, sequences: int, keys: int, extremes: Extremes) -> float:
        return self._times.uneven_s(Decodes(sequences, keys, *extremes)) if self._times.decode is not None else 0.0

    def _sum_s(self, base_s: float, sequences: int, keys: int, steps: int) -> float:
        if self._times.decode is None:
            return super()._sum_s(base_s, sequences, keys, steps)
        return steps * base_s + self._times.decode_s(Decodes(sequences, keys, 0, 0), steps)

    def _model_s(self, tokens: int) -> float:
        if self._dense is None:
            return super()._model_s(tokens)
        last = self._dense.xs[-1]
        if tokens <= last:
            return self._dense.at(tokens)
        return self._dense.ys[-1] * super()._model_s(tokens) / super()._model_s(int(last))

    def _head_s(self, sampled: int) -> float:
        if self._head is None or not sampled:
            return super()._head_s(sampled)
        last = self._head.xs[-1]
        if sampled <= last:
            return self._head.at(sampled)
        return self._head.ys[-1] * super()._head_s(sampled) / super()._head_s(int(last))

    def _overhead_s(self, segments: int) -> float:
        return self._iteration_s + segments * self._sequence_s


def _split(
    query_lens: Sequence[int], kv_lens: Sequence[int], decodes: int, decode_keys: int
) -> tuple[Prompts, Decodes]:
    """Segments of more than one query, and the others with ``decodes`` more that see ``decode_keys`` together."""
    segments = list(zip(query_lens, kv_lens, strict=True))
    prompts = tuple([(queries, keys) for queries, keys in segments if queries > 1])
    seen = [keys for queries, keys in segments if queries == 1]
    extremes = (min(seen), max(seen)) if seen and not decodes else EVEN
    return Prompts(prompts), Decodes(len(seen) + decodes, sum(seen) + decode_keys, *extremes)


def _line(curve: Curve | None) -> Line | None:
    return None if curve is None else Line(curve.x.tolist(), curve.seconds.tolist(), 0.0)


def _add(shares: Shares, line: Line | None, x: float, seconds: float) -> None:
    if line is None:
        shares.roofline_s += seconds
    elif x <= line.xs[-1]:
        shares.measured_s += seconds
    else:
        shares.extrapolated_s += seconds
