"""kvarena's own format, one conversation a line; see README.md in this folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..schema import ConfigError
from .common import FileKnobs, ListedWorkload, Setting
from .conversation import Conversation, Turn, Workload
from .reading import Row, read_rows

_CONVERSATION_KEYS = ("conversation", "start_s", "turns")
_TURN_KEYS = ("prompt", "prompt_ids", "reply", "reply_ids", "output_tokens", "think_s", "arrival_s")


@dataclass(frozen=True)
class Jsonl(FileKnobs):
    """Conversations as the file gives them: texts or token ids, with the file's times unless knobs replace them."""

    def open(self, setting: Setting) -> Workload:
        found = sorted(_conversations(read_rows(self.file()), setting), key=lambda c: c.start_s)
        return ListedWorkload("jsonl", self.arrange(found, setting), setting, self.warmup)


def _conversations(rows: Iterator[Row], setting: Setting) -> Iterator[Conversation]:
    labels: dict[str, str] = {}
    for index, row in enumerate(rows):
        row.only(_CONVERSATION_KEYS)
        label = row.values.get("conversation", index)
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise row.wrong("conversation", "a text or a whole number")
        if str(label) in labels:
            raise ConfigError(
                f"{row.where}: conversation {label!r} was at {labels[str(label)]} already, expected one line each"
            )
        labels[str(label)] = row.where
        turns = tuple(_turn(turn, setting) for turn in row.rows("turns"))
        if not turns:
            raise row.wrong("turns", "at least one turn")
        yield Conversation(index, _start(row, turns), turns, str(label))


def _start(row: Row, turns: tuple[Turn, ...]) -> float:
    arrivals = [t.arrival_s for t in turns if t.arrival_s is not None]
    start_s = row.number("start_s", turns[0].arrival_s or 0.0)
    for earlier, later in pairwise([start_s, *arrivals]):
        if later < earlier:
            raise ConfigError(f"{row.where}: 'arrival_s' is {later} after {earlier}, expected times that do not fall")
    return start_s


def _turn(row: Row, setting: Setting) -> Turn:
    row.only(_TURN_KEYS)
    prompt = _ids(row, "prompt", setting)
    if prompt is None or not len(prompt):
        key = "prompt_ids" if "prompt_ids" in row else "prompt"
        raise row.wrong(key, "at least one token ('prompt': text or 'prompt_ids': list)")
    reply = _ids(row, "reply", setting)
    if reply is None or "output_tokens" in row:
        output = row.whole("output_tokens", 1)
        if reply is not None and output != len(reply):
            raise row.wrong("output_tokens", f"{len(reply)}, the tokens of the reply")
    else:
        output = len(reply)
    if output < 1:
        raise row.wrong("reply_ids" if "reply_ids" in row else "reply", "at least one token")
    arrival_s = row.number("arrival_s") if "arrival_s" in row else None
    return Turn(len(prompt), output, row.number("think_s", 0.0), arrival_s, prompt, reply)


def _ids(row: Row, key: str, setting: Setting) -> NDArray[np.int32] | None:
    """The token ids under ``key`` + ``_ids``, or of the text under ``key``; None if there is neither."""
    if key + "_ids" in row:
        if key in row:
            raise ConfigError(f"{row.where}: both {key!r} and '{key}_ids' are given, expected one of them")
        return np.array(row.whole_list(key + "_ids", 2**31 if setting.symbolic else setting.vocab_size), np.int32)
    return setting.encode(row.text(key)) if key in row else None
