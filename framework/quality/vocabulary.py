"""The 256 token ids of the retrieval episodes: markers, filler, keys and values, in ranges that do not overlap."""

from __future__ import annotations

from collections.abc import Sequence

BEGIN, SEPARATOR, NOTED, QUERY = range(4)  # start; end of the context; the reply to a context; what follows is asked
MARKERS = range(16)  # those above, and room for more
NOISE = range(16, 80)
KEYS = range(80, 160)
VALUES = range(160, 256)
VOCAB_SIZE = 256

_MARKER_NAMES = ("begin", "separator", "noted", "query")
_CLASSES = (("n", NOISE), ("k", KEYS), ("v", VALUES))


def word(token: int) -> str:
    """A readable name of a token: ``query``, ``n7``, ``k12``, ``v3``.

    Raises
    ------
    ValueError
        If ``token`` is not in [0, 256).
    """
    if not 0 <= token < VOCAB_SIZE:
        raise ValueError(f"token is {token}, expected 0 to {VOCAB_SIZE - 1}")
    if token in MARKERS:
        return _MARKER_NAMES[token] if token < len(_MARKER_NAMES) else f"m{token}"
    letter, ids = next((letter, ids) for letter, ids in _CLASSES if token in ids)
    return f"{letter}{token - ids.start}"


def spell(tokens: Sequence[int]) -> str:
    """Tokens as words, for people: ``"query k12 v3"``."""
    return " ".join(word(int(token)) for token in tokens)
