"""What happened in a run, and what it adds up to. README.md defines every metric."""

from .audit import RecordError
from .columns import Columns, RequestColumns
from .kept import KeptRecords
from .recorder import RunRecorder
from .records import Recorder, RequestRecord, RunTotals, StepRecord, TransferRecord
from .summary import Prices, Slo, summarize, write_summary

__all__ = [
    "Columns",
    "KeptRecords",
    "Prices",
    "RecordError",
    "Recorder",
    "RequestColumns",
    "RequestRecord",
    "RunRecorder",
    "RunTotals",
    "Slo",
    "StepRecord",
    "TransferRecord",
    "summarize",
    "write_summary",
]
