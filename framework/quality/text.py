"""Text for byte-level perplexity: a book without its publisher's frame, cut into what is trained on and what is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

EXCERPT = Path(__file__).parent / "checkpoints" / "bytes" / "held_out.txt"
EXCERPT_BYTES = 32 * 1024
_HELD_OUT = 16  # the last one of so many parts
_SHORTEST = 64 * 1024
_START, _END = b"*** START OF TH", b"*** END OF TH"  # "this" or "the" project


@dataclass(frozen=True, slots=True)
class Book:
    """A book's bytes: ``train``, and its last sixteenth, ``held_out``."""

    train: bytes
    held_out: bytes

    @property
    def excerpt(self) -> bytes:
        """The beginning of ``held_out``, cut between paragraphs."""
        start = self.held_out.find(b"\n\n") + 2
        end = self.held_out.rfind(b"\n\n", start, start + EXCERPT_BYTES)
        return self.held_out[start:end] + b"\n"


def read_book(path: Path) -> Book:
    """Read a plain-text book; a Project Gutenberg header and footer are left out, line ends become ``\\n``.

    Raises
    ------
    ValueError
        If ``path`` cannot be read or holds less than 64 KiB of text.
    """
    try:
        data = path.expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"text {str(path)!r} cannot be read: {error.strerror}") from error
    text = _body(data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n"))
    if len(text) < _SHORTEST:
        raise ValueError(f"text {str(path)!r} has {len(text)} bytes, expected at least {_SHORTEST}")
    cut = text.rfind(b"\n\n", 0, len(text) - len(text) // _HELD_OUT)
    cut = len(text) - len(text) // _HELD_OUT if cut < 0 else cut
    return Book(text[:cut], text[cut:])


def _body(text: bytes) -> bytes:
    start, end = text.find(_START), text.rfind(_END)
    if start < 0 or end < start:
        return text.strip()
    return text[text.index(b"\n", start) : end].strip()


def windows(text: bytes, length: int) -> NDArray[np.int64]:
    """``text`` in rows of ``length`` bytes, [rows, length]; what is left over at the end is dropped."""
    rows = len(text) // length
    return np.frombuffer(text[: rows * length], np.uint8).astype(np.int64).reshape(rows, length)


def random_windows(text: bytes, length: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``count`` stretches of ``length`` bytes from anywhere in ``text``, [count, length]."""
    data = np.frombuffer(text, np.uint8)
    starts = rng.integers(0, len(data) - length + 1, count)
    return np.asarray(data[starts[:, None] + np.arange(length)], np.int64)
