"""The second pass of a sampled run: what was served, once more under the full cache, and what differs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import Backend, window_of
from ..composition import Parts
from ..progress import WorkProgress
from ..run_info import RunInfo
from ..schema import ConfigError
from ..workloads.conversation import Workload
from .asking import Asked
from .cases import Case, CaseTurn, Ids
from .contest import full_cache, opened
from .judging import Judge
from .passes import Passed, run_pass
from .recording import Recording, Wanted
from .results import ROWS, SERVED, MeasuredTurn, rows, sample_section, write_rows
from .sampling import SAMPLE_BYTES, Drawn, Sampler, draw
from .watching import listening, probe

log = logging.getLogger(__name__)
_PLAIN = {"eviction": {"name": "lru"}, "writeback": {"name": "none"}, "prefetch": {"name": "prefix"}}


def open_sampler(parts: Parts, backend: Backend, workload: Workload, share: float | None) -> Sampler | None:
    """What listens to ``backend`` while ``workload`` is served; None where ``share`` is nothing."""
    if not share:
        return None
    like = probe(backend.executor)
    window, token_bytes = window_of(parts, backend), like.shape[-1] * like.element_size()
    return Sampler(draw(workload, share, parts.seed, window, backend.shape.max_positions, token_bytes), like)


def hearing(sampler: Sampler | None, backend: Backend) -> AbstractContextManager[None]:
    """Within it ``sampler``, if there is one, hears of every batch."""
    return nullcontext() if sampler is None else listening(backend.executor, sampler)


def judge_sample(config: Mapping[str, Any], info: RunInfo, folder: Path, sampler: Sampler) -> dict[str, Any] | None:
    """Run what ``sampler`` kept under the full cache, write ``quality.parquet`` into ``folder``, and return the section
    ``quality`` of ``summary.json``; None if nothing can be judged, which a warning says: the run has its figures
    whatever comes of this. Its own engine must be closed: both take the same memory.
    """
    cases, heard = _cases(sampler)
    _tell(info, sampler, cases)
    if not cases:
        return None
    try:
        turns = _judged(config, info, folder, cases, heard)
        write_rows(folder / ROWS, rows(turns, None))
    except (ConfigError, RuntimeError, ValueError, OSError, MemoryError) as error:  # such as no room for the full cache
        log.warning("%s: the sample could not be judged: %s", info.label, " ".join(str(error).split()))
        return None
    return sample_section(turns, sampler.draw.share)


def _judged(
    config: Mapping[str, Any], info: RunInfo, folder: Path, cases: list[Case], heard: Passed
) -> list[MeasuredTurn]:
    whole = _reference(config, max(case.tokens for case in cases))
    with WorkProgress(info.label) as progress, opened(whole, info, folder) as (parts, backend):
        progress.plan(sum(len(case.turns) for case in cases))
        progress.note("judged against the full cache")
        full = run_pass(parts, backend, cases, None, Recording(Wanted()), progress.advance)
        shape = backend.shape
        text = Asked(shape.name, shape.vocab_size, backend.tokenizer, backend.max_tokens).text
        judge = Judge(shape.kv_bytes_per_token, text)
    replies = [[_given(turn) for turn in case.turns] for case in cases]
    return judge.turns(cases, replies, heard, full, None)


def _reference(config: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """``config`` with the full cache on the device alone, which holds the longest conversation: its turns follow one
    another at once, so that nothing below is of use."""
    whole, memory = full_cache(config, False), dict(config["memory"])
    if (given := memory.get("device_tokens")) is not None:
        page_size = int(memory["page_size"])
        memory["device_tokens"] = max(int(given), -(-tokens // page_size) * page_size)
    alone = {"host_tokens": 0, "disk_tokens": 0, "disk_dir": None, "disk_persist": False}
    return {**whole, **_PLAIN, "memory": {**memory, **alone}}


def _cases(sampler: Sampler) -> tuple[list[Case], Passed]:
    """What was served of the conversations that were drawn, and what was kept of it."""
    sampler.synchronize()
    cases, heard = list[Case](), Passed()
    for one in sorted(sampler.draw.drawn, key=lambda drawn: drawn.conversation.id):
        turns = list(_turns(one, sampler))
        while turns and not turns[-1].measured:
            turns.pop()
        for number, turn in enumerate(turns):
            if turn.measured and (steps := sampler.steps(one.conversation.id, number)) is not None:
                heard.steps[len(cases), number] = steps
        if turns:
            length = len(one.opening) + sum(t.prompt_tokens + t.output_tokens for t in one.conversation.turns)
            cases.append(Case(SERVED, length, one.conversation.id, tuple(turns)))
    return cases, heard


def _turns(one: Drawn, sampler: Sampler) -> Iterator[CaseTurn]:
    """The turns that were served, up to the first that was not."""
    for number, turn in enumerate(one.conversation.turns[: one.turns]):
        record = sampler.records.get((one.conversation.id, number))
        if record is None or record.status != "ok" or record.completion_s < 0:
            return
        assert turn.prompt_ids is not None
        prompt = turn.prompt_ids if number else np.concatenate([one.opening, turn.prompt_ids])
        reply = np.array(record.output_ids, np.int32) if turn.reply_ids is None else turn.reply_ids
        steps = sampler.steps(one.conversation.id, number)
        yield CaseTurn(prompt, reply, len(reply), measured=steps is not None and len(steps) == len(reply))


def _given(turn: CaseTurn) -> Ids:
    assert turn.reply is not None
    return turn.reply


def _tell(info: RunInfo, sampler: Sampler, cases: list[Case]) -> None:
    """Say what of the sample is not judged."""
    drawn = sampler.draw.drawn
    if (left := sampler.draw.too_large) > 0:
        limit = f"of the sample are not judged: their distributions do not fit into {SAMPLE_BYTES / 2**30:g} GiB"
        log.warning("%s: %d of %d conversations %s", info.label, left, left + len(drawn), limit)
    turns = sum(len(one.conversation.turns) for one in drawn)
    judged = sum(turn.measured for case in cases for turn in case.turns)
    if judged < turns:
        why = "they failed, were part of the warm-up, or are longer than the model's positions"
        log.warning("%s: %d of %d sampled turns are not judged: %s", info.label, turns - judged, turns, why)
    if not (drawn or sampler.draw.too_large):
        log.warning("%s: no conversation of the workload can be judged", info.label)
