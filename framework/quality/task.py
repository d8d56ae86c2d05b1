"""``task=quality``: the full cache first, then the policies under test, token by token on the same replies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..composition import Parts, TorchBackend, prepare, refusing
from ..execution.contract import ModelShape
from ..metrics import write_summary
from ..metrics.summary import SCHEMA
from ..progress import WorkProgress
from ..run_info import RunInfo
from ..schema import ConfigError
from ..serve import describe, open_run_tracker
from ..task_knobs import QualityTask
from .asking import Asked, draw_cases
from .cases import Case, Ids
from .contest import RECORDED_BYTES, Contest, Contestant, check_cases, contestants, followed, full_cache
from .judging import Judge
from .passes import Passed, Speed
from .results import ROWS, MeasuredTurn, reference_section, rows, section, write_rows
from .watching import check_layers
from .wording import TextTokenizer


def quality(config: Mapping[str, Any], folder: Path, info: RunInfo) -> dict[str, Any]:
    """Run ``config`` into ``folder`` and return the content of its ``summary.json``.

    Raises
    ------
    ConfigError
        If the config cannot run; nothing was computed or written then.
    """
    parts = prepare(config, info)
    task = parts.task
    assert isinstance(task, QualityTask)
    _refuse(parts)
    with ExitStack() as stack:
        progress = stack.enter_context(WorkProgress(info.label))
        contest = Contest(task, info, folder, progress.advance)
        with refusing():
            plan = _plan(contest, config, parts)
        run_info = {**describe(config, info, parts), "workload": "quality", "model": plan.shape.name, "task": "quality"}
        tracker = open_run_tracker(config, folder, info, run_info)
        stack.push(lambda kind, *_: tracker.finish(None, 1) if kind else None)
        progress.plan(plan.turns)
        found = _compete(contest, config, plan, progress)
        summary = _summary(run_info, task, plan, found)
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / ROWS, (row for point in found.points for row in rows(point.turns, point.one.budget)))
        write_summary(folder, summary)
        tracker.finish(summary)
    return summary


def _refuse(parts: Parts) -> None:
    if not isinstance(parts.backend, TorchBackend):
        raise ConfigError("task=quality needs a model that answers: choose backend=torch, found backend=simulated")
    if parts.memory.disk_persist:
        raise ConfigError("memory: disk_persist is true, but task=quality begins each of its passes with empty tiers")


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be done: ``chunks`` of cases, each with whether the full cache can hold them."""

    shape: ModelShape
    tokenizer: TextTokenizer | None
    chunks: Sequence[tuple[Sequence[Case], bool]]
    ones: Sequence[Contestant]
    rows: bool
    passes: int

    @property
    def cases(self) -> list[Case]:
        return [case for cases, _ in self.chunks for case in cases]

    @property
    def turns(self) -> int:
        """Of all passes together."""
        return sum(
            len(case.turns) * (len(self.ones) * self.passes + referred)
            for cases, referred in self.chunks
            for case in cases
        )


@dataclass(slots=True)
class _Point:
    """A contestant, the turns that were measured of it, how fast it was where it went on from its own replies, and
    which of its layers share K/V, if any may."""

    one: Contestant
    turns: list[MeasuredTurn] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    layer_map: dict[str, int] | None = None


@dataclass(slots=True)
class _Found:
    points: list[_Point]
    reference: list[MeasuredTurn] = field(default_factory=list)


def _plan(contest: Contest, config: Mapping[str, Any], parts: Parts) -> _Plan:
    """Load the model once to see what it can be asked; nothing is computed for the run."""
    task, ones = contest.task, contestants(config, contest.task)
    for one in ones:
        prepare(one.config, contest.info)
    whole = {**full_cache(config, False), "backend": config["backend"]}  # positions may not be decoupled in any model
    with contest.open(whole) as (_, backend):
        check_layers(backend.executor, parts.lossy)
        shape, tokenizer = backend.shape, backend.tokenizer
        asked = Asked(shape.name, shape.vocab_size, tokenizer, backend.max_tokens)
        cases = draw_cases(task, parts.seed, asked)
        fits = check_cases(cases, parts, backend)
    oracle = parts.policies.truncation.oracle
    free = task.free_running or any(turn.reply is None for case in cases for turn in case.turns)
    chunks = list(_chunks(cases, fits, shape, oracle))
    return _Plan(shape, asked.text, chunks, ones, oracle, 1 + free)


def _chunks(
    cases: Sequence[Case], fits: Sequence[bool], shape: ModelShape, rows: bool
) -> Iterator[tuple[list[Case], bool]]:
    """Cases whose runs are remembered together."""
    for wanted in (True, False):
        chunk, held = list[Case](), 0
        for case, fit in zip(cases, fits, strict=True):
            if fit != wanted:
                continue
            size = _recorded_bytes(case, shape, rows)
            if rows and size > RECORDED_BYTES:
                limit = f"expected at most {RECORDED_BYTES / 2**30:g} GiB: choose shorter lengths"
                raise ConfigError(f"{case.name}: an oracle looks at all attention of {case.tokens} tokens, {limit}")
            if chunk and held + size > RECORDED_BYTES:
                yield chunk, wanted
                chunk, held = [], 0
            chunk.append(case)
            held += size
        if chunk:
            yield chunk, wanted


def _recorded_bytes(case: Case, shape: ModelShape, rows: bool) -> int:
    """Logits, attention and what is cached of every step, of two runs."""
    planes = shape.num_layers * shape.num_kv_heads
    step = 4 * shape.vocab_size + 4 * shape.num_layers * shape.num_heads * shape.head_dim + 8 * planes * case.tokens
    whole = 4 * shape.num_layers * shape.num_heads * case.tokens**2 if rows else 0
    return 2 * (step * case.measured_tokens + whole)


def _compete(contest: Contest, config: Mapping[str, Any], plan: _Plan, progress: WorkProgress) -> _Found:
    found = _Found([_Point(one) for one in plan.ones])
    judge = Judge(plan.shape.kv_bytes_per_token, plan.tokenizer)
    for cases, referred in plan.chunks:
        progress.note("full cache")
        full = contest.reference(config, cases, plan.rows) if referred else None
        replies = followed(cases, full)
        if full is not None:
            found.reference += judge.turns(cases, replies, full, None, full)
        for point in found.points:
            progress.note(_name(point.one))
            _measure(contest, point, cases, replies, full, judge, plan.passes > 1)
    return found


def _name(one: Contestant) -> str:
    name = str(dict(one.config["truncation"])["name"])
    return name if one.budget is None else f"{name}, {one.budget:.0%}"


def _measure(
    contest: Contest,
    point: _Point,
    cases: Sequence[Case],
    replies: Sequence[Sequence[Ids]],
    full: Passed | None,
    judge: Judge,
    free: bool,
) -> None:
    heard = contest.heard(point.one, cases, replies, full)
    alone = contest.free(point.one, cases, full) if free else None
    point.layer_map = heard.layer_map
    point.turns += judge.turns(cases, replies, heard, full, alone)
    if alone is not None and alone.speed is not None:
        point.speeds.append(alone.speed)


def _summary(run_info: Mapping[str, Any], task: QualityTask, plan: _Plan, found: _Found) -> dict[str, Any]:
    cases = plan.cases
    turns = [turn for case in cases for turn in case.turns]
    return {
        "schema": SCHEMA,
        "run": {**run_info, "saturated": False},
        "workload": {
            "conversations": len(cases),
            "requests": len(turns),
            "warmup_requests": 0,
            "failed": 0,
            "prompt_tokens": sum(len(turn.prompt) for turn in turns),
            "output_tokens": sum(turn.tokens for turn in turns),
        },
        "quality": {
            "protocol": task.protocol,
            "lengths": sorted({case.length for case in cases if case.length}),
            "episodes": task.episodes,
            "top_keys": task.top_keys,
            "kv_bytes_per_token": plan.shape.kv_bytes_per_token,
            "reference": reference_section(found.reference) if found.reference else None,
            "points": [_point(point) for point in found.points],
        },
    }


def _point(point: _Point) -> dict[str, Any]:
    config = point.one.config
    return {
        "truncation": dict(config["truncation"])["name"],
        "compression": dict(config["compression"])["name"],
        "budget": point.one.budget,
        "speed": asdict(point.speeds[0]) if len(point.speeds) == 1 else None,
        **({} if point.layer_map is None else {"layer_map": point.layer_map}),
        **section(point.turns),
    }
