"""One pass: cases served by an engine from their first turn to their last, heard by a recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..backends import Backend
from ..composition import Parts
from ..metrics import KeptRecords, RequestRecord, summarize
from ..serve import Server
from .cases import Case, CaseWorkload, Ids
from .recording import Recording, Rows, Step
from .watching import watch

Place = tuple[int, int]  # of a case in the pass, and of a turn in the case


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a pass was served, measured where nothing is recorded; seconds and tokens."""

    output_tokens_per_s: float | None
    ttft_mean_s: float | None
    tpot_mean_s: float | None
    peak_kv_bytes: int | None


@dataclass(slots=True)
class Passed:
    """What a pass left.

    Attributes
    ----------
    chosen: the model's own choices, by turn. steps: of each turn, if they were recorded. rows: see ``Recording``, by
        case. speed: of the whole pass. layer_map: see ``Backend``.
    """

    chosen: dict[Place, list[int]] = field(default_factory=dict)
    steps: dict[Place, list[Step]] = field(default_factory=dict)
    rows: dict[int, list[Rows]] = field(default_factory=dict)
    speed: Speed | None = None
    layer_map: dict[str, int] | None = None


def run_pass(
    parts: Parts,
    backend: Backend,
    cases: Sequence[Case],
    replies: Sequence[Sequence[Ids | None]] | None,
    recording: Recording | None,
    on_turn: Callable[[], None],
) -> Passed:
    """Serve ``cases`` on ``backend``, which nothing else uses meanwhile.

    ``replies``: see :class:`CaseWorkload`. ``on_turn`` is called after each turn.

    Raises
    ------
    RuntimeError
        If a turn could not be served.
    """
    records = KeptRecords(on_turn)
    server = Server(parts, backend, CaseWorkload(cases, replies))
    with watch(backend.executor, recording):
        server.run(records, lambda stage: None)
    backend.finish_copies()
    for record in records.requests:
        if record.status != "ok":
            raise RuntimeError(f"{cases[record.conversation].name}, turn {record.turn}: {record.status}")
    totals = server.totals()
    told = summarize(records.requests, records.steps, records.transfers, {}, totals=totals)
    latency, throughput = told["latency"], told["throughput"]
    speed = Speed(
        throughput["output_tokens_per_s"],
        latency["ttft_s"]["mean"],
        latency["tpot_s"]["mean"],
        told["device"]["peak_kv_bytes"],
    )
    passed = _by_turn(records.requests, recording, speed)
    passed.layer_map = backend.layer_map
    return passed


def _by_turn(requests: Sequence[RequestRecord], recording: Recording | None, speed: Speed) -> Passed:
    passed = Passed(speed=speed)
    for record in requests:
        place = (record.conversation, record.turn)
        passed.chosen[place] = list(record.output_ids)
        if recording is not None:
            passed.steps[place] = recording.steps.pop(record.request, [])
            passed.rows.setdefault(record.conversation, []).extend(recording.rows.pop(record.request, []))
    return passed
