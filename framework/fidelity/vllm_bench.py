"""A measured run of vLLM in LLMServingSim's format, and its workload.

``vllm/requests.jsonl``: per request ``arrival_time`` (a wall clock), ``queued_ts``, ``first_token_ts`` and
``last_token_ts`` (a monotonic clock of the engine), seconds. ``vllm/meta.json``: the engine's arguments. The workload's
JSON lines (``.jsonl`` or ``.jsonl.zst``) hold ``input_tok_ids`` and ``output_toks``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..schema import ConfigError
from ..workloads.conversation import Conversation, Turn
from ..workloads.tokens import IdLog, TokenLog

Floats = NDArray[np.float64]
_TIMES = ("arrival_time", "queued_ts", "first_token_ts", "last_token_ts")


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of the requests of one run, in order of arrival, seconds; latency counts from arrival to the last token."""

    ttft_s: Floats
    tpot_s: Floats
    latency_s: Floats


@dataclass(frozen=True, slots=True)
class Bench:
    """A measured run.

    Attributes
    ----------
    model: name on the hub. version: of vLLM.
    max_num_batched_tokens, max_num_seqs, devices: the engine's arguments.
    arrival_s: of each request, from the first one's.
    """

    model: str
    version: str
    max_num_batched_tokens: int
    max_num_seqs: int
    devices: int
    arrival_s: Floats
    real: Latencies


class Requests:
    """A :class:`~..workloads.conversation.Workload` of single requests at given times; replies have no known ids."""

    name = "vllm"
    barrier = False
    symbolic = False
    warmup = 0

    def __init__(self, prompts: list[NDArray[np.int32]], outputs: list[int], arrival_s: Floats) -> None:
        turns = [
            Turn(len(ids), output, arrival_s=float(time_s), prompt_ids=ids)
            for ids, output, time_s in zip(prompts, outputs, arrival_s, strict=True)
        ]
        self._listed = [Conversation(i, float(arrival_s[i]), (turn,), str(i)) for i, turn in enumerate(turns)]

    def __len__(self) -> int:
        return len(self._listed)

    def conversations(self) -> Iterator[Conversation]:
        """In order of arrival."""
        return iter(self._listed)

    def new_log(self, conversation: Conversation) -> TokenLog:
        """Empty; the reply's ids derive from the conversation."""
        return IdLog(stream=conversation.id)


def read_bench(folder: Path) -> Bench:
    """The run under ``folder``, which holds ``vllm/``.

    Raises
    ------
    ConfigError
        If a file is missing or lacks what it must hold; file, line and key are named.
    """
    meta_path, path = folder / "vllm" / "meta.json", folder / "vllm" / "requests.jsonl"
    meta = _json(meta_path, _read(meta_path).decode("utf-8", "replace"))
    arguments = meta.get("engine_kwargs") or {}
    for key in ("max_num_batched_tokens", "max_num_seqs", "tensor_parallel_size"):
        if not isinstance(arguments.get(key), int):
            raise ConfigError(f"{meta_path}: engine_kwargs.{key} is {arguments.get(key)!r}, expected a whole number")
    rows = list(_lines(path))
    times = {key: np.array([_number(path, i, row, key) for i, row in enumerate(rows)]) for key in _TIMES}
    outputs = np.array([_number(path, i, row, "output_toks") for i, row in enumerate(rows)])
    offset_s = float((times["queued_ts"] - times["arrival_time"]).min())  # between the clocks; the fastest way in: 0 s
    arrival_s = times["arrival_time"] + offset_s
    last_s, first_s = times["last_token_ts"], times["first_token_ts"]
    wrong = np.nonzero((first_s <= arrival_s) | (last_s < first_s) | (np.diff(arrival_s, prepend=arrival_s[0]) < 0))[0]
    if len(wrong):
        raise ConfigError(f"{path}: line {wrong[0] + 1}: times must not fall from request to request, nor in one")
    real = Latencies(first_s - arrival_s, (last_s - first_s) / np.maximum(outputs - 1, 1), last_s - arrival_s)
    return Bench(
        model=str(meta.get("model")),
        version=str(meta.get("vllm_version")),
        max_num_batched_tokens=arguments["max_num_batched_tokens"],
        max_num_seqs=arguments["max_num_seqs"],
        devices=arguments["tensor_parallel_size"],
        arrival_s=arrival_s - arrival_s[0],
        real=real,
    )


def read_workload(path: Path, bench: Bench) -> Requests:
    """The requests of ``bench``, at the times at which they arrived there.

    Raises
    ------
    ConfigError
        If the file is missing or lacks what it must hold, or has another number of requests.
    """
    rows = list(_lines(path))
    if len(rows) != len(bench.arrival_s):
        raise ConfigError(f"{path}: has {len(rows)} requests, the run has {len(bench.arrival_s)}")
    prompts = []
    for i, row in enumerate(rows):
        ids = row.get("input_tok_ids")
        if not isinstance(ids, list) or not ids or not all(isinstance(token, int) for token in ids):
            raise ConfigError(f"{path}: line {i + 1}: 'input_tok_ids' must be a list of token ids")
        prompts.append(np.array(ids, np.int32))
    outputs = [int(_number(path, i, row, "output_toks")) for i, row in enumerate(rows)]
    return Requests(prompts, outputs, bench.arrival_s)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_read(path).decode("utf-8", "replace").splitlines(), 1):
        if line.strip():
            yield _json(path, line, number)


def _json(path: Path, text: str, number: int = 1) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path}: line {number}: no JSON ({error})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: line {number}: expected an object")
    return found


def _read(path: Path) -> bytes:
    import pyarrow as pa

    try:
        with pa.input_stream(str(path)) as stream:
            return bytes(stream.read())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from error


def _number(path: Path, index: int, row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value) or value <= 0:
        raise ConfigError(f"{path}: line {index + 1}: {key!r} is {value!r}, expected a number > 0")
    return float(value)
