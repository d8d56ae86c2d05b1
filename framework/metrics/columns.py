"""Rows kept as columns: cheap to append to, small in memory, ready for numpy and Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from .gaps import TokenGaps
from .records import RequestRecord, StepRecord, TransferRecord

Schema = Mapping[str, str]
Rows = NDArray[np.void]

REQUEST_SCHEMA: Schema = {
    **dict.fromkeys(("request", "conversation"), "i8"),
    "turn": "i4",
    **dict.fromkeys(("arrival_s", "scheduled_s", "first_token_s", "completion_s"), "f8"),
    **dict.fromkeys(("prompt_tokens", "history_tokens", "reusable_tokens"), "i8"),
    **dict.fromkeys(("reused_device", "reused_host", "reused_disk", "reused_remote", "recomputed", "dropped"), "i8"),
    "output_tokens": "i8",
    "load_stall_s": "f8",
    "suspensions": "i4",
    "status": "O",
    **dict.fromkeys(("preempted", "reusable_pages", "reused_pages"), "i8"),
    "warmup": "?",
}
STEP_SCHEMA: Schema = {
    **dict.fromkeys(("start_s", "duration_s"), "f8"),
    **dict.fromkeys(("n_steps", "prefill_tokens", "decode_tokens", "recompute_tokens", "running", "waiting"), "i8"),
    **dict.fromkeys(("device_pages", "host_pages", "disk_pages"), "i8"),
    **dict.fromkeys(("stall_s", "overhead_s"), "f8"),
    **dict.fromkeys(("device_evicted", "host_evicted", "disk_evicted"), "i8"),
}
TRANSFER_SCHEMA: Schema = {
    **dict.fromkeys(("start_s", "end_s"), "f8"),
    "link": "O",
    **dict.fromkeys(("pages", "layers", "bytes"), "i8"),
    "reason": "O",
    "request": "i8",
}
TIERS = ("device", "host", "disk", "remote")

R = TypeVar("R")


class Columns(Generic[R]):
    """An append-only table of records of one kind.

    ``append`` keeps a reference and is O(1); every ``chunk`` records become one packed numpy block, so that a million
    rows cost their bytes and no more. A record must not change once it is appended.
    """

    def __init__(self, schema: Schema, chunk: int = 4096) -> None:
        self.schema = schema
        self._dtype = np.dtype(list(schema.items()))
        self._values = attrgetter(*schema)
        self._chunk = chunk
        self._rows: list[R] = []
        self._blocks: list[Rows] = []

    def append(self, record: R) -> None:
        """Add one row."""
        self._rows.append(record)
        if len(self._rows) >= self._chunk:
            self._pack()

    def __len__(self) -> int:
        return len(self._rows) + sum(map(len, self._blocks))

    def rows(self) -> Rows:
        """All rows so far as one structured array, fields as in ``schema``; not to be modified."""
        self._pack()
        if len(self._blocks) != 1:
            self._blocks = [np.concatenate(self._blocks) if self._blocks else np.empty(0, self._dtype)]
        return self._blocks[0]

    def _pack(self) -> None:
        if self._rows:
            self._blocks.append(np.array([self._values(row) for row in self._rows], self._dtype))
            self._rows = []


class RequestColumns(Columns[RequestRecord]):
    """Requests, and what does not fit a fixed row: the gaps between tokens and, if asked for, the output ids."""

    def __init__(self, save_tokens: bool = False) -> None:
        super().__init__(REQUEST_SCHEMA, chunk=1024)
        self.gaps = TokenGaps()
        self.output_ids: list[NDArray[np.int32]] | None = [] if save_tokens else None

    def append(self, record: RequestRecord) -> None:
        """Add a finished or failed request."""
        super().append(record)
        if self.output_ids is not None:
            self.output_ids.append(np.asarray(record.output_ids, np.int32))
        if record.status == "ok" and record.token_times:
            self.gaps.add(record.request, record.token_times, record.output_tokens, keep=not record.warmup)


@dataclass(frozen=True, slots=True)
class LayerArrivals:
    """When each of a transfer's layers was there, ``first`` the number of the first of them."""

    first: int
    ends_s: tuple[float, ...]


class TransferColumns(Columns[TransferRecord]):
    """Transfers, and of the first of them when each layer arrived: at most ``most_layers`` times in all.

    Attributes
    ----------
    arrivals: the times, by row.
    """

    def __init__(self, most_layers: int = 20_000) -> None:
        super().__init__(TRANSFER_SCHEMA)
        self.arrivals: dict[int, LayerArrivals] = {}
        self._layers_left = most_layers

    def append(self, record: TransferRecord) -> None:
        """Add a transfer that has ended."""
        if self._layers_left > 0 and (count := len(record.layer_ends_s)) > 1:
            self._layers_left -= count
            if self._layers_left >= 0:
                self.arrivals[len(self)] = LayerArrivals(record.first_layer, tuple(record.layer_ends_s))
        super().append(record)


def request_columns(records: RequestColumns | Iterable[RequestRecord]) -> RequestColumns:
    """``records`` as columns; columns are passed through."""
    return records if isinstance(records, RequestColumns) else _filled(RequestColumns(), records)


def step_columns(records: Columns[StepRecord] | Iterable[StepRecord] = ()) -> Columns[StepRecord]:
    """``records`` as columns; columns are passed through."""
    return records if isinstance(records, Columns) else _filled(Columns[StepRecord](STEP_SCHEMA), records)


def transfer_columns(records: Columns[TransferRecord] | Iterable[TransferRecord] = ()) -> Columns[TransferRecord]:
    """``records`` as columns; columns are passed through."""
    return records if isinstance(records, Columns) else _filled(TransferColumns(), records)


C = TypeVar("C", bound=Columns[Any])


def _filled(columns: C, records: Iterable[Any]) -> C:
    for record in records:
        columns.append(record)
    return columns
