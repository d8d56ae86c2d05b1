"""What cases of words ask of a model's tokenizer, and where a reply of its tokens ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol as Contract


class TextTokenizer(Contract):
    """A model's tokenizer, both ways."""

    @property
    def starts(self) -> Sequence[int]:
        """Ids that a text begins with (BOS), where the model's convention wants any."""
        ...

    @property
    def ends(self) -> Sequence[int]:
        """Ids that end a reply (EOS)."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        ...

    def continued(self, text: str) -> list[int]:
        """Token ids of a text in the middle of another."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without special tokens."""
        ...


def opened(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Token ids of a conversation that begins with ``text``: with the model's BOS, unless the text brings its own."""
    ids, starts = tokenizer.encode(text), list(tokenizer.starts)
    return ids if starts and ids[: len(starts)] == starts else starts + ids


def reply_length(tokenizer: TextTokenizer, reply: Sequence[int], one_line: bool) -> int:
    """How many of a reply's tokens belong to it: up to the first that ends it, that one included.

    ``one_line``: the end of the first line that is not empty ends it too.
    """
    ends = set(tokenizer.ends)
    stop = next((i + 1 for i, token in enumerate(reply) if token in ends), len(reply))
    if not one_line:
        return stop
    lines = (i for i in range(1, stop + 1) if "\n" in tokenizer.decode(list(reply[:i])).lstrip("\n"))
    return next(lines, stop)


def reply_text(tokenizer: TextTokenizer, reply: Sequence[int], one_line: bool) -> str:
    """The text of a reply up to its end, see :func:`reply_length`."""
    ends = set(tokenizer.ends)
    own = [token for token in reply[: reply_length(tokenizer, reply, one_line)] if token not in ends]
    text = tokenizer.decode(own)
    return text.lstrip("\n").partition("\n")[0] if one_line else text
