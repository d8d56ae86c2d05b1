"""Text to token ids, as far as workloads need it."""

from __future__ import annotations

import re
from typing import Protocol
from zlib import crc32

_PIECE = re.compile(r" ?\w{1,8}| ?[^\w\s]{1,4}|\s{1,8}")


class Tokenizer(Protocol):
    """What a workload asks of a tokenizer; no special tokens are to be added."""

    def encode(self, text: str) -> list[int]: ...


class ByteTokenizer:
    """One token a byte of UTF-8, modulo ``vocab_size`` (below 256 different texts may become equal tokens).

    Raises
    ------
    ValueError
        If ``vocab_size`` < 1.
    """

    def __init__(self, vocab_size: int) -> None:
        if vocab_size < 1:
            raise ValueError(f"vocab_size is {vocab_size}; it must be >= 1")
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``."""
        return [byte % self.vocab_size for byte in text.encode()]


class PieceTokenizer(ByteTokenizer):
    """Words, cut after 8 characters, with hashed ids: lengths near those of a trained tokenizer where there is none.

    Equal texts become equal ids; different pieces may, with the chance 1 / ``vocab_size``. Cannot be decoded.
    """

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``."""
        return [crc32(piece.encode()) % self.vocab_size for piece in _PIECE.findall(text)]
