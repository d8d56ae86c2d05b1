"""Tokenizers of models: text to token ids and back, with what the model's own convention puts before a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import logging as hf_logging

_PROBE, _BREAK = "a", "\n"


class HfTokenizer:
    """A Hugging Face tokenizer as workloads want it: :meth:`encode` adds no special tokens.

    Parameters
    ----------
    tokenizer: as ``AutoTokenizer`` loads it.
    ends: ids that end a reply beside the tokenizer's own.

    Attributes
    ----------
    starts: ids that ``tokenizer(text)`` puts before a text (BOS, where the model wants one).
    ends: ids that end a reply; ascending.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self.starts = self._before()
        own = getattr(tokenizer, "eos_token_id", None)
        self.ends = tuple(sorted({*ends, *([] if own is None else [int(own)])}))
        broken = self.encode(_BREAK)
        self._break = broken if self.encode(_BREAK + _PROBE) != broken + self.encode(_PROBE) else None

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``."""
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def continued(self, text: str) -> list[int]:
        """Token ids of ``text`` in the middle of another: SentencePiece would put a space before it elsewhere."""
        if self._break is None:
            return self.encode(text)
        found = self.encode(_BREAK + text)
        return found[len(self._break) :] if found[: len(self._break)] == self._break else self.encode(text)

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``, without special tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _before(self) -> tuple[int, ...]:
        plain = self.encode(_PROBE)
        whole = list(self._tokenizer.encode(_PROBE, add_special_tokens=True, verbose=False))
        places = (at for at in range(len(whole) - len(plain) + 1) if whole[at : at + len(plain)] == plain)
        return tuple(whole[: next(places, 0)])


def load_tokenizer(path: str, ends: Sequence[int]) -> HfTokenizer | None:
    """The tokenizer beside a model's weights; None if there is none: a workload of texts will say what it lacks.

    ``ends``: see :class:`HfTokenizer`.
    """
    try:
        with quiet():
            return HfTokenizer(AutoTokenizer.from_pretrained(path), ends)
    except (OSError, ValueError, KeyError, TypeError):
        return None


class quiet:
    """transformers' progress bars and warnings off for a while."""

    def __enter__(self) -> None:
        self._level = hf_logging.get_verbosity()
        self._bar = hf_logging.is_progress_bar_enabled()
        hf_logging.set_verbosity_error()
        hf_logging.disable_progress_bar()

    def __exit__(self, *exc: object) -> None:
        hf_logging.set_verbosity(self._level)
        if self._bar:
            hf_logging.enable_progress_bar()
