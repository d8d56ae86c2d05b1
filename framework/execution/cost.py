"""What an iteration costs: a roofline per operator, in closed form over stretches of decode steps.

A GEMM takes the cube root of the sum of cubes of FLOPs / reachable FLOP/s and bytes / reachable bandwidth (the greater
of them alone would be 10 - 25 % too fast where both count), attention the greater of the two; operators follow one
another. Per layer and device: QKV, output and MLP projections (weights read once), attention, small element-wise
kernels, two all-reduces and a launch overhead; then the LM head for the sampled rows and an overhead per iteration and
sequence. A segment of q queries that sees k keys computes q * k - q * (q - 1) / 2 query-key pairs (causal) and reads k
keys and values.

Deviations from a real machine: efficiencies are constants of the hardware file (small or odd shapes reach less),
segments of one batch do not overlap in attention, and sliding windows are ignored. Layers that use another's K/V spare
their projections and writes; measured times (tables) are those of the model as it was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..policy import Tier
from .contract import ModelShape
from .hardware import Hardware

Extremes = tuple[int, int]
EVEN: Extremes = (0, 0)  # nobody asked

QUERY_KEYS = 350  # a query of a prompt costs as if it saw so many keys more: tiles, softmax, output (A100, H100, H200)
_REMEMBERED = 1 << 14  # numbers of tokens whose time is kept
_ELEMENTWISE_PASSES = 12  # hidden-sized reads and writes per token and layer: two norms, two residual adds, rotary


def blend(compute_s: Any, read_s: Any) -> Any:
    """The time of what computes for ``compute_s`` and reads for ``read_s`` at once, which never overlap fully."""
    return (compute_s**3 + read_s**3) ** (1 / 3)


class Gemm:
    """One weight matrix of ``rows`` x ``columns`` on one device."""

    def __init__(self, rows: float, columns: float, shape: ModelShape, hardware: Hardware) -> None:
        bandwidth = hardware.memory_bytes_per_s * hardware.gemm_bandwidth_efficiency
        flops_per_s = hardware.flops_per_s(shape.dtype_bytes) * hardware.gemm_efficiency
        self.compute_s = 2 * rows * columns / flops_per_s  # per token
        self.weights_s = rows * columns * shape.dtype_bytes / bandwidth
        self.activations_s = (rows + columns) * shape.dtype_bytes / bandwidth  # per token

    def seconds(self, tokens: int) -> float:
        """Time to multiply ``tokens`` activations: computing, and reading weights and activations and writing these."""
        return float(blend(tokens * self.compute_s, self.weights_s + tokens * self.activations_s))


class CostModel:
    """Seconds of iterations and transfers of ``shape`` on ``hardware``; implements :class:`~..policy.Costs`.

    All lengths are counted in tokens. ``kv_lens[i]`` is how many keys the last query of segment i sees: its start
    position plus its query length. Every method is a pure function of its arguments.

    Parameters
    ----------
    page_size: transfers move whole pages of so many tokens.

    Raises
    ------
    ValueError
        If ``page_size`` < 1 or the shape's parameter count is smaller than its attention and embeddings.
    """

    uneven = False  # times of decode batches depend on their shortest and longest sequence

    def __init__(self, shape: ModelShape, hardware: Hardware, page_size: int = 1) -> None:
        if page_size < 1:
            raise ValueError(f"page_size={page_size!r} must be >= 1")
        self.shape, self.hardware, self.page_size = shape, hardware, page_size
        devices, hidden, layers = hardware.devices, shape.hidden_size, shape.num_layers
        query_width = shape.num_heads * shape.head_dim / devices
        kv_heads = max(shape.num_kv_heads / devices, 1)  # heads are copied where devices outnumber them
        kv_width = kv_heads * shape.head_dim
        sizes = (
            (hidden, query_width + 2 * kv_width),
            (query_width, hidden),
            (hidden, mlp_width(shape) / 2 / devices),  # as two halves: what expands and what contracts
            (mlp_width(shape) / 2 / devices, hidden),
        )
        self._gemms = [Gemm(rows, columns, shape, hardware) for rows, columns in sizes]
        self._lm_head = Gemm(hidden, shape.vocab_size / devices, shape, hardware)
        self._layers = layers
        self._token_s = _ELEMENTWISE_PASSES * hidden * shape.dtype_bytes / self._bandwidth
        self._write_s = 2 * kv_width * shape.kv_dtype_bytes / self._bandwidth  # a token's K/V
        self._token_s += self._write_s
        self._queries = Gemm(hidden, query_width, shape, hardware)  # alone, in layers that use another's K/V
        self._sharing = layers - shape.stored_layers
        self._layer_s = hardware.layer_overhead_s
        ring = 2 * (devices - 1) / devices / hardware.interconnect_bytes_per_s
        self._reduce_token_s = 2 * hidden * shape.dtype_bytes * ring  # two all-reduces
        self._reduce_layer_s = 2 * hardware.interconnect_latency_s if devices > 1 else 0.0
        attention_flops_per_s = hardware.flops_per_s(shape.dtype_bytes) * hardware.attention_efficiency
        attention_bandwidth = hardware.memory_bytes_per_s * hardware.attention_bandwidth_efficiency
        self._pair_s = layers * 4 * query_width / attention_flops_per_s
        self._key_s = layers * 2 * kv_width * shape.kv_dtype_bytes / attention_bandwidth
        self._decode_key_s = max(self._pair_s, self._key_s)  # one query: as many pairs as keys
        self._layers_s, self._sampled_s = lru_cache(_REMEMBERED)(self._model_s), lru_cache(_REMEMBERED)(self._head_s)

    @property
    def _bandwidth(self) -> float:
        return self.hardware.memory_bytes_per_s * self.hardware.gemm_bandwidth_efficiency

    def step_s(self, query_lens: NDArray[np.int64], kv_lens: NDArray[np.int64], sampled: int) -> float:
        """One iteration: segments of ``query_lens`` (>= 1) queries; the LM head runs for ``sampled`` rows. Empty: 0.

        O(segments), vectorised; the order of the segments does not matter.
        """
        segments = len(query_lens)
        if not segments:
            return 0.0
        tokens = int(query_lens.sum())
        base_s = self._dense_s(tokens, segments, sampled)
        if tokens == segments:
            return self.decode_s(segments, int(kv_lens.sum()), 1, _extremes(kv_lens), base_s)
        return base_s + self._attention_s(query_lens, kv_lens)

    def mixed_s(
        self, query_lens: Sequence[int], kv_lens: Sequence[int], sampled: int, decodes: int, decode_keys: int
    ) -> float:
        """:meth:`step_s` of a few segments, ``sampled`` of them to their end, and ``decodes`` decode tokens more that
        see ``decode_keys`` keys together."""
        tokens, attention_s = decodes, decode_keys * self._decode_key_s
        for queries, keys in zip(query_lens, kv_lens, strict=True):
            tokens += queries
            attention_s += self._segment_s(queries, keys, (keys - 0.5 * (queries - 1)) * queries)
        return self._dense_s(tokens, len(query_lens) + decodes, sampled + decodes) + attention_s

    def outside_s(self, segments: int, sampled: int) -> float:
        """The part of :meth:`step_s` that belongs to no layer: LM head and overheads. Empty: 0."""
        if not segments:
            return 0.0
        return self._head_s(sampled) + self._overhead_s(segments)

    def stretch_s(self, kv_lens: NDArray[np.int64], steps: int) -> float:
        """``steps`` decode steps of one sampled token per sequence; ``kv_lens`` are those of the first step.

        Equals the sum of the single steps up to rounding, in O(sequences). No sequences or no steps: 0.
        """
        return self.decode_s(len(kv_lens), int(kv_lens.sum()), steps, _extremes(kv_lens))

    def decode_s(
        self, sequences: int, keys: int, steps: int, extremes: Extremes = EVEN, base_s: float | None = None
    ) -> float:
        """:meth:`stretch_s` in O(1), where ``keys`` is the sum of ``kv_lens`` and ``extremes`` their least and greatest
        (given where :attr:`uneven` asks for them); ``base_s`` is a step but its attention, if known."""
        if not sequences or steps < 1:
            return 0.0
        if base_s is None:
            base_s = self._dense_s(sequences, sequences, sequences)
        return self._sum_s(base_s + self._uneven_s(sequences, keys, extremes), sequences, keys, steps)

    def steps_until(self, kv_lens: NDArray[np.int64], steps: int, limit_s: float) -> int:
        """The fewest steps whose :meth:`stretch_s` reaches ``limit_s``: at least 1, at most ``steps``.

        O(sequences + log steps).
        """
        return self.decode_steps_until(len(kv_lens), int(kv_lens.sum()), steps, limit_s, 0.0, _extremes(kv_lens))

    def decode_steps_until(
        self,
        sequences: int,
        keys: int,
        steps: int,
        limit_s: float,
        stall_s: float = 0.0,
        extremes: Extremes = EVEN,
    ) -> int:
        """:meth:`steps_until` in O(log steps), where ``keys`` is the sum of ``kv_lens``, ``extremes`` are their least
        and greatest, and the first step begins only after ``stall_s``."""
        base_s = self._dense_s(sequences, sequences, sequences) + self._uneven_s(sequences, keys, extremes)
        low, high = 1, max(steps, 1)
        while low < high:
            middle = (low + high) // 2
            if stall_s + self._sum_s(base_s, sequences, keys, middle) >= limit_s:
                high = middle
            else:
                low = middle + 1
        return low

    def recompute_s(self, start: int, stop: int) -> float:
        """The tokens ``start`` .. ``stop`` as an iteration of their own, without sampling or engine overhead."""
        tokens = stop - start
        if tokens <= 0:
            return 0.0
        pairs = tokens * stop - tokens * (tokens - 1) // 2
        return self._layers_s(tokens) + self._segment_s(tokens, stop, pairs)

    def load_s(self, tokens: int, tier: Tier) -> float:
        """Bringing ``tokens`` from ``tier`` to the device over idle links; what comes from disk crosses the host, one
        link after the other."""
        if tokens <= 0 or tier == Tier.DEVICE:
            return 0.0
        hardware = self.hardware
        num_bytes = -(-tokens // self.page_size) * self.page_size * self.shape.kv_bytes_per_token
        if tier == Tier.REMOTE:
            return hardware.network_latency_s + num_bytes / hardware.network_bytes_per_s
        load_s = hardware.host_link_latency_s + num_bytes / hardware.host_bytes_per_s
        if tier == Tier.DISK:
            load_s += hardware.disk_latency_s + num_bytes / hardware.disk_read_bytes_per_s
        return load_s

    def watch_s(self, queries: int, keys: int) -> float:
        """Looking once more at the scores of the last ``queries`` of a segment over ``keys`` keys, for a policy that
        asks what attention gave: half of what attention computes and reads. By the roofline, whatever was measured."""
        pairs = (keys - 0.5 * (queries - 1)) * queries
        return self._segment_s(queries, keys, pairs) / 2

    def elementwise_s(self, tokens: int) -> float:
        """Norms, activations, residuals, rotary embedding and launches of all layers."""
        return self._layers * (self._layer_s + tokens * self._token_s)

    def all_reduce_s(self, tokens: int) -> float:
        """What tensor parallelism sends, in all layers; 0 on one device."""
        return self._layers * (self._reduce_layer_s + tokens * self._reduce_token_s)

    def _attention_s(self, query_lens: NDArray[np.int64], kv_lens: NDArray[np.int64]) -> float:
        pairs = (kv_lens - 0.5 * (query_lens - 1) + QUERY_KEYS * (query_lens > 1)) * query_lens
        return float(np.maximum(pairs * self._pair_s, kv_lens * self._key_s).sum())

    def _model_s(self, tokens: int) -> float:
        """All layers but their attention."""
        layer_s = self._layer_s + self._reduce_layer_s + tokens * (self._token_s + self._reduce_token_s)
        for gemm in self._gemms:
            layer_s += gemm.seconds(tokens)
        if not self._sharing:
            return self._layers * layer_s
        spared_s = self._gemms[0].seconds(tokens) - self._queries.seconds(tokens) + tokens * self._write_s
        return self._layers * layer_s - self._sharing * spared_s

    def _dense_s(self, tokens: int, segments: int, sampled: int) -> float:
        """One iteration but its attention."""
        return self._layers_s(tokens) + self._sampled_s(sampled) + self._overhead_s(segments)

    def _head_s(self, sampled: int) -> float:
        return self._lm_head.seconds(sampled) if sampled else 0.0

    def _segment_s(self, queries: int, keys: int, pairs: float) -> float:
        """Attention of one segment alone."""
        more = QUERY_KEYS * queries if queries > 1 else 0
        return max((pairs + more) * self._pair_s, keys * self._key_s)

    def _overhead_s(self, segments: int) -> float:
        return self.hardware.iteration_overhead_s + segments * self.hardware.sequence_overhead_s

    def _uneven_s(self, sequences: int, keys: int, extremes: Extremes) -> float:
        """What unequal lengths add to every step of a decode stretch."""
        return 0.0

    def _sum_s(self, base_s: float, sequences: int, keys: int, steps: int) -> float:
        """``steps`` decode steps of ``base_s`` and their attention, which sees ``sequences`` keys more every step."""
        all_keys = steps * keys + sequences * (steps * (steps - 1) // 2)
        return steps * base_s + all_keys * self._decode_key_s


def _extremes(kv_lens: NDArray[np.int64]) -> Extremes:
    return (int(kv_lens.min()), int(kv_lens.max())) if len(kv_lens) else EVEN


def mlp_width(shape: ModelShape) -> float:
    """Columns of one layer's MLP matrices together (3 x intermediate if gated, else 2 x), from the parameter count."""
    attention = 2 * shape.hidden_size * (shape.num_heads + shape.num_kv_heads) * shape.head_dim
    multiplied = shape.num_params - shape.embedding_params - shape.vocab_size * shape.hidden_size
    width = (multiplied / shape.num_layers - attention) / shape.hidden_size
    if width < 0:
        raise ValueError(
            f"model {shape.name!r}: num_params={shape.num_params} is less than its attention and embeddings"
        )
    return width
