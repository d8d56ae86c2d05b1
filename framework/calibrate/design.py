"""Which batches are timed: each stands for one point of an operator's table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Operator = Literal["dense", "head", "prefill", "decode", "mixed"]

CHUNK = 16  # tokens of the segments whose attention is next to nothing
MAX_DECODE_TOKENS = 65_536  # keys of a whole decode batch
TOKENS = (
    *(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024),
    *(1536, 2048, 3072, 4096, 6144, 8192),
)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
QUERIES = (8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
DECODING = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LENGTHS = (256, 1024, 4096, 16_384, 65_536)
SHORT = 16
MAX_PAIRS = 2**21  # queries x context of a prefill; what is beyond is not measured


@dataclass(frozen=True, slots=True)
class Segment:
    """``length`` queries after ``context`` tokens."""

    length: int
    context: int
    sample: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """One point of a table, and the batch whose time tells it.

    Attributes
    ----------
    tokens: of a dense batch, or queries of a prefill. context: tokens before them.
    sequences: sampled rows, or sequences that decode. keys: that each of these sees.
    sampled: the head runs; of a ``head`` without it the batch is the same but for that.
    """

    operator: Operator
    tokens: int = 0
    context: int = 0
    sequences: int = 0
    keys: int = 0
    sampled: bool = False

    def segments(self) -> list[Segment]:
        """The batch."""
        if self.operator == "dense":
            whole, rest = divmod(self.tokens, CHUNK)
            return [Segment(CHUNK, 0)] * whole + ([Segment(rest, 0)] if rest else [])
        if self.operator == "head":
            return [Segment(1, 0, self.sampled)] * self.sequences
        prefill = [Segment(self.tokens, self.context, self.sampled)] if self.tokens else []
        return prefill + [Segment(1, self.keys - 1, self.sampled)] * self.sequences

    @property
    def held_tokens(self) -> int:
        """K/V that the batch touches."""
        return sum(segment.length + segment.context for segment in self.segments())

    def __str__(self) -> str:
        parts = [f"{self.tokens} tokens"] if self.tokens else []
        parts += [f"after {self.context}"] if self.operator in ("prefill", "mixed") else []
        if self.sequences:
            parts.append(f"{self.sequences} sequences" + (f" of {self.keys} keys" if self.keys else ""))
        return f"{self.operator}: {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Limits:
    """How far the tables reach.

    Attributes
    ----------
    tokens: the largest batch. context: the most tokens before a prefill. sequences: the most that decode.

    Raises
    ------
    ValueError
        If one of them is too small to tell anything.
    """

    tokens: int = 1024
    context: int = 2048
    sequences: int = 32

    def __post_init__(self) -> None:
        for name, least in (("tokens", 32), ("context", 64), ("sequences", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")


def table_probes(limits: Limits) -> list[Probe]:
    """The points of all tables; the two batches of a head stand next to each other."""
    longest = min(limits.tokens, limits.context)
    dense = [Probe("dense", tokens=n) for n in _within(TOKENS, limits.tokens)]
    rows = _within(ROWS, limits.sequences)
    heads = [Probe("head", sequences=n, sampled=sampled) for n in rows for sampled in (False, True)]
    contexts = (0, *_within(LENGTHS, limits.context))
    prefills = [
        Probe("prefill", tokens=n, context=context)
        for n in _within(QUERIES, longest)
        for context in contexts
        if n * context <= MAX_PAIRS
    ]
    lengths = (SHORT, *_within(LENGTHS, limits.context))
    decodes = [
        Probe("decode", sequences=n, keys=keys)
        for n in _within(DECODING, limits.sequences)
        for keys in lengths
        if n * keys <= MAX_DECODE_TOKENS
    ]
    return [*dense, *heads, *prefills, *decodes]


def check_probes(limits: Limits) -> list[Probe]:
    """Mixed batches, on which the tables are tried: they are in none."""
    queries = [n for n in (48, 96, 192, 384) if n <= min(limits.tokens, limits.context) // 2]
    keys = min(768, limits.context)
    sequences = [max(1, limits.sequences // 8), max(2, limits.sequences // 3)]
    return [
        Probe("mixed", n, min(384, limits.context - n), count, keys, True)
        for n in queries or [limits.context // 4]
        for count in sequences
    ]


def _within(points: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Those of ``points`` that are at most ``most``, and ``most`` itself."""
    return tuple(sorted({*(point for point in points if point <= most), most}))


def largest(probes: list[Probe]) -> int:
    """Tokens of K/V that the largest batch touches."""
    return max(probe.held_tokens for probe in probes)


def pairs(probes: list[Probe]) -> Iterator[tuple[Probe, Probe]]:
    """The two batches of each head: without it, and with it."""
    without = {probe.sequences: probe for probe in probes if probe.operator == "head" and not probe.sampled}
    for probe in probes:
        if probe.operator == "head" and probe.sampled:
            yield without[probe.sequences], probe
