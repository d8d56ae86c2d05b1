"""The recorder of a run: takes rows as they happen, leaves the run folder's tables and timeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from .columns import RequestColumns, TransferColumns, step_columns
from .parquet import write_table
from .records import RequestRecord, StepRecord, TransferRecord
from .timeline import write_timeline
from .tracking import Tracker


class RunRecorder:
    """A :class:`~.records.Recorder` that keeps all rows in columns and writes them on :meth:`close`.

    Appending never raises and touches no disk. Use it as a context manager, so that a run that fails half-way leaves
    what happened until then.

    Parameters
    ----------
    folder: the run's folder; made on close if missing.
    tracker: gets every step and request too; it bounds its own rate.
    save_tokens: keep each request's output ids for ``requests.parquet``.
    timeline_events: the most events that ``timeline.json`` may hold; later ones are left out, and the file says so.

    Attributes
    ----------
    requests, steps, transfers: the columns, as ``summarize`` takes them.
    """

    def __init__(
        self, folder: Path, tracker: Tracker | None = None, save_tokens: bool = False, timeline_events: int = 100_000
    ) -> None:
        if timeline_events < 0:
            raise ValueError(f"timeline_events is {timeline_events}, expected 0 or more")
        self.folder = Path(folder)
        self.requests = RequestColumns(save_tokens)
        self.steps = step_columns()
        self.transfers = TransferColumns()
        self._tracker = tracker
        self._timeline_events = timeline_events
        self._closed = False

    def request(self, record: RequestRecord) -> None:
        """A request finished or failed; the record is final."""
        self.requests.append(record)
        if self._tracker is not None:
            self._tracker.request(record)

    def step(self, record: StepRecord) -> None:
        """An iteration, or a stretch of equal ones, was executed."""
        self.steps.append(record)
        if self._tracker is not None:
            self._tracker.step(record)

    def transfer(self, record: TransferRecord) -> None:
        """A copy ended."""
        self.transfers.append(record)

    def close(self) -> None:
        """Write ``requests``, ``steps``, ``transfers`` (.parquet) and ``timeline.json``; a second call does nothing.

        Raises
        ------
        OSError
            If a file could not be written; all the others were tried first.
        """
        if self._closed:
            return
        self._closed = True
        self.folder.mkdir(parents=True, exist_ok=True)
        writers: list[Callable[[], None]] = [
            lambda: write_table(self.folder / "requests.parquet", self.requests),
            lambda: write_table(self.folder / "steps.parquet", self.steps),
            lambda: write_table(self.folder / "transfers.parquet", self.transfers),
            self._write_timeline,
        ]
        problems = [problem for write in writers if (problem := _attempt(write)) is not None]
        if problems:
            raise problems[0]

    def _write_timeline(self) -> None:
        rows = self.requests.rows(), self.steps.rows(), self.transfers.rows()
        write_timeline(self.folder / "timeline.json", *rows, self._timeline_events, self.transfers.arrivals)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif (problem := _attempt(self.close)) is not None:
            error.add_note(f"the run's records could not be written either: {problem}")


def _attempt(write: Callable[[], None]) -> OSError | None:
    try:
        write()
    except OSError as problem:
        return problem
    return None
