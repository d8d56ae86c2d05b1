"""How much room a context takes on the device while it is served, where policies may let go of parts of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .policy import Compression, Stage, TokenTruncation, Truncation


@dataclass(frozen=True, slots=True)
class Held:
    """A context in the cache: its ``tokens``, what a plane caches of them on average, the ``slots`` that this takes."""

    tokens: int = 0
    cached: float = 0.0
    slots: int = 0

    @classmethod
    def whole(cls, tokens: int) -> Held:
        """A context of which nothing was let go of."""
        return cls(tokens, float(tokens), tokens)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Sizes of contexts under policies that let go of single tokens or store them packed; exact for policies whose
    ``kept_tokens`` is, but for planes of different sizes, which are packed in whole pages.

    Attributes
    ----------
    truncation: what lets go of tokens; None: nothing does.
    compression: in what form the rest is stored.
    share: bytes of a packed token / bytes of a native one.
    page_size: tokens in a page; packed tokens take whole pages.
    chunk: the most tokens of a prompt that are computed at once; None: prompts are never divided.
    """

    truncation: TokenTruncation | None
    compression: Compression
    share: float
    page_size: int
    chunk: int | None = None

    def after(self, held: Held, stage: Stage) -> Held:
        """What is left of ``held`` after a step."""
        kept = held.cached
        if self.truncation is not None:
            kept = self.truncation.kept_tokens(math.ceil(held.cached), held.tokens, stage)
        slots = self._slots(held, math.ceil(kept), stage)
        return Held(held.tokens, kept, slots) if slots < held.slots else held  # else nothing would be freed

    def _slots(self, held: Held, tokens: int, stage: Stage) -> int:
        if stage != "chunk":
            packed = self.compression.packed_tokens(tokens)
            return math.ceil(packed * self.share / self.page_size) * self.page_size + tokens - packed
        is_packed = held.slots < math.ceil(held.cached)
        return held.slots if is_packed else tokens  # nothing is packed before a prompt's end

    def resumed(self, tokens: int, slots: int) -> Held:
        """A context of ``tokens`` that takes ``slots`` after a turn."""
        if self.compression.packed_tokens(tokens) == 0:
            return Held(tokens, float(slots), slots)
        kept = tokens if self.truncation is None else self.truncation.kept_tokens(tokens, tokens, "decode")
        return Held(tokens, float(kept), slots)

    def turn(self, held: Held, prompt: int, output: int) -> tuple[int, Held]:
        """A turn of ``prompt`` new tokens on ``held``, whose reply has ``output``: the most slots at any time, and what
        is held then. O(chunks)."""
        peak, left = held.slots, prompt
        while left:
            part = left if self.chunk is None else min(left, self.chunk)
            left -= part
            grown = _grown(held, part)
            peak = max(peak, grown.slots)
            held = self.after(grown, "chunk" if left else "prompt")
        if not output:
            return peak, held
        grown = _grown(held, output)
        end = self.after(grown, "decode")
        most = max(held.slots, end.slots) + 1 if end.slots < grown.slots else grown.slots
        return max(peak, most), end


def _grown(held: Held, tokens: int) -> Held:
    return Held(held.tokens + tokens, held.cached + tokens, held.slots + tokens)


@dataclass(frozen=True, slots=True)
class Window:
    """How long a context may be.

    Attributes
    ----------
    room: slots on the device. max_tokens: positions of the model; None: any number.
    truncation: the chosen one. footprint: where contexts are narrowed; None: they take a slot a token.
    """

    room: int
    max_tokens: int | None
    truncation: Truncation
    footprint: Footprint | None = None

    @property
    def limit(self) -> int:
        """The longest context of which nothing is let go of."""
        return self.room if self.max_tokens is None else min(self.room, self.max_tokens)

    def turn(self, held: Held, prompt: int, output: int) -> Turn:
        """What a turn of so many tokens on ``held`` takes; what truncation drops before it does not count."""
        if self.footprint is None:
            history, needed = held.tokens, held.tokens + prompt + output
            if needed > self.limit:
                needed -= self.truncation.first_kept(history, needed, self.limit)
            return Turn(needed, needed, Held.whole(needed))
        peak, after = self.footprint.turn(held, prompt, output)
        by_place = isinstance(self.truncation, TokenTruncation) and self.truncation.positions == "cache"
        return Turn(peak, peak if by_place else after.tokens, after)


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn's needs: the most ``slots`` on the device, ``positions`` of the model; what is ``held`` after it."""

    slots: int
    positions: int
    held: Held
