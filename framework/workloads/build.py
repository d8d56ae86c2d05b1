"""Workloads by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..schema import ConfigError, build, suggest
from .common import Knobs, Setting
from .conversation import Workload
from .jsonl import Jsonl
from .mooncake import Mooncake
from .rounds import Rounds
from .sharegpt import ShareGPT
from .synthetic import SyntheticChat
from .tokenizer import PieceTokenizer, Tokenizer

WORKLOADS: Mapping[str, type[Knobs]] = {
    "jsonl": Jsonl,
    "mooncake": Mooncake,
    "rounds": Rounds,
    "sharegpt": ShareGPT,
    "synthetic_chat": SyntheticChat,
}


def workload_schema(name: str) -> type[Knobs]:
    """The dataclass whose fields are the knobs of the workload ``name``.

    Raises
    ------
    ConfigError
        If there is none; the message lists those there are.
    """
    if name not in WORKLOADS:
        raise ConfigError(f"unknown workload {name!r}; there are {', '.join(WORKLOADS)}{suggest(name, WORKLOADS)}")
    return WORKLOADS[name]


def make_workload(
    name: str, knobs: Mapping[str, Any], seed: int, vocab_size: int, tokenizer: Tokenizer | None, symbolic: bool
) -> Workload:
    """Open the workload ``name``.

    Parameters
    ----------
    knobs: fields of its dataclass; a key ``name`` is passed over.
    seed: >= 0; equal seeds give equal workloads.
    vocab_size: token ids that are drawn lie below it; read or tokenised ones must.
    tokenizer: for workloads with text; None: :class:`PieceTokenizer`.
    symbolic: nothing will run a model: sizes and identity are enough.

    Raises
    ------
    ConfigError
        For an unknown name, a bad knob, a missing or malformed file, or a workload that cannot serve a model.
    """
    schema = workload_schema(name)
    given = {key: value for key, value in knobs.items() if key != "name"}
    setting = Setting(seed, vocab_size, tokenizer or PieceTokenizer(vocab_size), symbolic)
    return build(schema, given, f"workload={name}").open(setting)
