"""Recorded chats with their text: ShareGPT's format, hub data sets of the same kind, and the flat form of requests."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise
from os.path import commonprefix
from statistics import median

from ..schema import ConfigError
from .common import FileKnobs, ListedWorkload, Setting
from .conversation import Conversation, Turn, Workload
from .reading import Row, read_rows

_LISTS = ("conversations", "conversation", "messages")
_USERS = frozenset({"human", "user"})
_MODELS = frozenset({"gpt", "assistant", "chatgpt", "bing", "bard", "model"})
_SPEAKERS = _USERS | _MODELS | {"system"}

Exchange = tuple[str, str]  # prompt, reply


@dataclass(frozen=True)
class ShareGPT(FileKnobs):
    """Chats from ``path`` or from the hub data set ``dataset``; replies are the recorded ones, fed back and forced.

    Three forms are taken: ``{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}, ...]}``; the same
    as ``{"messages": [{"role": "user", "content": ...}, ...]}``; and flat requests ``{"input", "output_length"}`` whose
    input repeats the history: those are grouped by growing prefix, and what an input adds is cut into the last reply
    and the new prompt at the line end that fits ``output_length`` best (the file has no mark there), so the context is
    exact and only the border is a guess. The last reply of a flat conversation is unknown: ``output_length`` tokens
    are generated.

    A system message goes in front of the prompt that follows. Successive messages of one speaker are one message; empty
    ones, what a model says before the first prompt and a last prompt without reply are left out.

    Attributes
    ----------
    dataset, split: a data set for ``datasets.load_dataset`` instead of ``path``, read as a stream.
    """

    think_time_s: float | None = 60.0
    dataset: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None and self.dataset is not None:
            raise ValueError(f"both path ({self.path}) and dataset ({self.dataset}) are set; only one may be")

    def source(self) -> str:
        return str(self.path or self.dataset)

    def open(self, setting: Setting) -> Workload:
        rows = read_rows(self.file()) if self.dataset is None else _hub_rows(self.dataset, self.split)
        first = next(rows, None)
        if first is None:
            raise ConfigError(f"{self.source()}: found no entry, expected conversations")
        rows = chain([first], rows)
        found = _flat(rows, setting) if "input" in first else _spoken(rows, setting)
        return ListedWorkload("sharegpt", self.arrange(found, setting), setting, self.warmup)


def _hub_rows(dataset: str, split: str) -> Iterator[Row]:
    try:
        from datasets import load_dataset  # heavy, and needed here only

        for index, values in enumerate(load_dataset(dataset, split=split, streaming=True)):
            yield Row(f"{dataset}:{split}[{index}]", values)
    except ConfigError:
        raise
    except Exception as error:  # whatever the hub, the network or the data set's builder raises
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"workload.dataset: {dataset} (split {split}) cannot be loaded: {reason}") from error


# --- conversations ------------------------------------------------------------------------------------------------


def _spoken(rows: Iterable[Row], setting: Setting) -> Iterator[Conversation]:
    for index, row in enumerate(rows):
        turns = tuple(_turns(_exchanges(_messages(row)), setting))
        label = row.values.get("id")
        yield Conversation(index, 0.0, turns, str(label) if isinstance(label, str | int) else row.where)


def _messages(row: Row) -> Iterator[tuple[str, str]]:
    """(speaker, text) pairs; speakers are ``user``, ``model`` or ``system``."""
    key = next((k for k in _LISTS if k in row), None)
    if key is None:
        raise row.wrong(_LISTS[0], "a list of messages (or 'messages', or 'input' and 'output_length')")
    for message in row.rows(key):
        who, what = ("from", "value") if "from" in message else ("role", "content")
        speaker = message.text(who if who in message else "from")
        if speaker not in _SPEAKERS:
            raise message.wrong(who, "one of " + ", ".join(sorted(_SPEAKERS)))
        yield "user" if speaker in _USERS else "model" if speaker in _MODELS else speaker, message.text(what)


def _exchanges(messages: Iterable[tuple[str, str]]) -> Iterator[Exchange]:
    prompt, reply = "", ""
    for speaker, text in messages:
        if speaker == "model":
            reply += text if prompt else ""
            continue
        if reply:
            yield prompt, reply
            prompt, reply = "", ""
        prompt += text
    if reply:
        yield prompt, reply


def _turns(exchanges: Iterable[Exchange], setting: Setting) -> Iterator[Turn]:
    for prompt, reply in exchanges:
        prompt_ids, reply_ids = setting.encode(prompt), setting.encode(reply)
        if not len(prompt_ids) or not len(reply_ids):
            return
        yield Turn(len(prompt_ids), len(reply_ids), prompt_ids=prompt_ids, reply_ids=reply_ids)


# --- flat requests ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Chain:
    """Requests of which each input begins with the one before."""

    where: str
    inputs: list[str] = field(default_factory=list)
    output_tokens: list[int] = field(default_factory=list)

    def added(self) -> Iterator[tuple[str, int]]:
        """(what an input adds to the one before, the length of the reply in it)."""
        for (earlier, later), output in zip(pairwise(self.inputs), self.output_tokens, strict=False):
            yield later[len(earlier) :], output


def _flat(rows: Iterable[Row], setting: Setting) -> Iterator[Conversation]:
    chains = _chain(rows)
    ratios = [len(text) / output for c in chains for text, output in c.added()]
    per_token = median(ratios) if ratios else 1.0
    for index, c in enumerate(chains):
        yield Conversation(index, 0.0, tuple(_flat_turns(c, per_token, setting)), c.where)


def _chain(rows: Iterable[Row]) -> list[_Chain]:
    """Group requests: each goes on with the conversation whose last input is the longest proper prefix of its own."""
    chains: list[_Chain] = []
    last: dict[str, _Chain] = {}  # by their last input
    ordered: list[str] = []  # the keys of last
    for row in rows:
        text, output = row.text("input"), row.whole("output_length", 1)
        if not text:
            raise row.wrong("input", "a text that is not empty")
        before = _longest_prefix(ordered, text)
        if before is None:
            found = _Chain(row.where)
            chains.append(found)
        else:
            found = last.pop(before)
            del ordered[bisect_left(ordered, before)]
        found.inputs.append(text)
        found.output_tokens.append(output)
        if text not in last:
            insort(ordered, text)
        last[text] = found
    return chains


def _longest_prefix(ordered: list[str], text: str) -> str | None:
    """The longest of the sorted texts that ``text`` begins with and that is not ``text`` itself."""
    index = bisect_left(ordered, text)
    while index:
        before = ordered[index - 1]
        if text.startswith(before):
            return before
        index = bisect_right(ordered, commonprefix([before, text]))  # whatever fits is a prefix of both
    return None


def _flat_turns(c: _Chain, per_token: float, setting: Setting) -> Iterator[Turn]:
    prompt = setting.encode(c.inputs[0])
    for text, output in c.added():
        cut = _border(text, output * per_token)
        reply = setting.encode(text[:cut])
        yield Turn(len(prompt), len(reply), prompt_ids=prompt, reply_ids=reply)
        prompt = setting.encode(text[cut:])
    yield Turn(len(prompt), c.output_tokens[-1], prompt_ids=prompt)


def _border(text: str, expected: float) -> int:
    """The line end inside ``text`` nearest to ``expected``, or that place itself where there is none."""
    ends = [i for i, c in enumerate(text) if c == "\n" and 0 < i < len(text) - 1]
    if ends:
        return min(ends, key=lambda i: abs(i - expected))
    return min(max(1, round(expected)), max(1, len(text) - 1))
