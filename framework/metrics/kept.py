"""A recorder that keeps what it is given, for those who look at a run's records as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .records import RequestRecord, StepRecord, TransferRecord


@dataclass(slots=True)
class KeptRecords:
    """A :class:`~.records.Recorder` in memory, in order; it writes nothing.

    ``on_request`` is called after each request that finished or failed.
    """

    on_request: Callable[[], None] = lambda: None
    requests: list[RequestRecord] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    transfers: list[TransferRecord] = field(default_factory=list)

    def request(self, record: RequestRecord) -> None:
        """A request finished or failed."""
        self.requests.append(record)
        self.on_request()

    def step(self, record: StepRecord) -> None:
        """An iteration was executed."""
        self.steps.append(record)

    def transfer(self, record: TransferRecord) -> None:
        """A copy ended."""
        self.transfers.append(record)

    def outputs(self) -> dict[tuple[int, int], list[int]]:
        """The model's choices, by conversation and turn."""
        return {(record.conversation, record.turn): list(record.output_ids) for record in self.requests}
