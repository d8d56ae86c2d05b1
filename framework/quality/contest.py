"""The contest: the full cache and the policies under test, each an engine of its own on the same cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import Backend, open_backend, window_of
from ..composition import Parts, prepare
from ..footprint import Held, Window
from ..run_info import RunInfo
from ..schema import ConfigError
from ..task_knobs import QualityTask
from .cases import Case, CaseTurn, Ids
from .passes import Passed, run_pass
from .recording import Recording, Wanted, full_attention
from .watching import foresee

RECORDED_BYTES = 2**30  # of what is remembered of the full cache's runs at once
_WHOLE = {"truncation": {"name": "none"}, "compression": {"name": "none"}}


@dataclass(frozen=True, slots=True)
class Contestant:
    """A configuration, and the budget that it was given; None: its own."""

    config: Mapping[str, Any]
    budget: float | None = None


def contestants(config: Mapping[str, Any], task: QualityTask) -> list[Contestant]:
    """The chosen policies, once for each budget."""
    if task.budgets is None:
        return [Contestant(config)]
    given = dict(config["truncation"])
    if "budget_ratio" not in given:
        name = given.get("name")
        raise ConfigError(f"task.budgets is given, but truncation={name} has no knob 'budget_ratio': leave it null")
    knobs = {**given, **({"budget_tokens": None} if "budget_tokens" in given else {})}
    return [Contestant({**config, "truncation": {**knobs, "budget_ratio": b}}, b) for b in task.budgets]


def full_cache(config: Mapping[str, Any], whole_history: bool) -> dict[str, Any]:
    """``config`` with nothing let go of. ``whole_history``: each turn computes its history again."""
    anew = {"prefetch": {"name": "none"}} if whole_history else {}
    return {**config, **_WHOLE, **anew, "backend": {**config["backend"], "decoupled": False}}


@contextmanager
def opened(config: Mapping[str, Any], info: RunInfo, folder: Path) -> Iterator[tuple[Parts, Backend]]:
    """An engine's parts, used for one pass: policies remember what they saw."""
    parts = prepare(config, info)
    backend = open_backend(parts, folder)
    try:
        yield parts, backend
    finally:
        backend.close()


@dataclass(frozen=True, slots=True)
class Contest:
    """What the passes share. ``folder``: the run's own; ``on_turn`` is called after each turn of a pass."""

    task: QualityTask
    info: RunInfo
    folder: Path
    on_turn: Callable[[], None]

    def open(self, config: Mapping[str, Any]) -> AbstractContextManager[tuple[Parts, Backend]]:
        """See :func:`opened`."""
        return opened(config, self.info, self.folder)

    def reference(self, config: Mapping[str, Any], cases: Sequence[Case], rows: bool) -> Passed:
        """The full cache's pass. ``rows``: all of its attention is recorded."""
        wanted = Wanted(
            attention="attention" in self.task.measures,
            top_keys=self.task.top_keys if "recall" in self.task.measures else 0,
            held=True,
            rows=rows,
        )
        with self.open(full_cache(config, rows)) as (parts, backend):
            return run_pass(parts, backend, cases, None, Recording(wanted), self.on_turn)

    def heard(
        self, one: Contestant, cases: Sequence[Case], replies: Sequence[Sequence[Ids]], full: Passed | None
    ) -> Passed:
        """The contestant's pass, made to follow ``replies``, recorded. ``full``: the reference's, for oracles."""
        wanted = Wanted(attention="attention" in self.task.measures, held=True)
        with self.open(one.config) as (parts, backend):
            _foresee(backend, cases, full)
            return run_pass(parts, backend, cases, replies, Recording(wanted), self.on_turn)

    def free(self, one: Contestant, cases: Sequence[Case], full: Passed | None) -> Passed:
        """The contestant's pass on its own replies, unheard."""
        own = [[None if turn.measured else turn.reply for turn in case.turns] for case in cases]
        with self.open(one.config) as (parts, backend):
            _foresee(backend, cases, full)
            return run_pass(parts, backend, cases, own, None, self.on_turn)


def _foresee(backend: Backend, cases: Sequence[Case], full: Passed | None) -> None:
    rows = {} if full is None else full.rows
    if rows:
        foresee(backend.executor, {i: full_attention(own, cases[i].tokens) for i, own in rows.items() if own})


def followed(cases: Sequence[Case], full: Passed | None) -> list[list[Ids]]:
    """The replies that all contestants follow: the right ones, or, where nobody says which are, the full cache's."""
    return [[_reply(turn, full, (i, j)) for j, turn in enumerate(case.turns)] for i, case in enumerate(cases)]


def _reply(turn: CaseTurn, full: Passed | None, place: tuple[int, int]) -> Ids:
    if turn.reply is not None:
        return turn.reply
    assert full is not None, "a case without a reply has a reference"
    return np.array(full.chosen[place], np.int32)


def check_cases(cases: Sequence[Case], parts: Parts, backend: Backend) -> list[bool]:
    """Which cases the full cache can hold; the others are measured without it.

    Raises
    ------
    ConfigError
        If the policies under test cannot hold one either: naming it and the sizes.
    """
    window = window_of(parts, backend)
    return [_fits(case, window, backend.shape.name) for case in cases]


def _fits(case: Case, window: Window, model: str) -> bool:
    held, positions = Held(), window.max_tokens
    for turn in case.turns:
        needs = window.turn(held, len(turn.prompt), turn.tokens)
        held = needs.held
        if needs.slots > window.room:
            held_there = f"the device tier holds {window.room} (memory.device_tokens)"
            raise ConfigError(f"{case.name} needs {needs.slots} tokens, {held_there}")
        if positions is not None and needs.positions > positions:
            raise ConfigError(
                f"{case.name} needs {needs.positions} tokens, model={model} has {positions} positions (task.lengths)"
            )
    fits = case.tokens <= window.limit
    if not fits and any(turn.reply is None for turn in case.turns):
        raise ConfigError(f"{case.name} has {case.tokens} tokens, the full cache, whose reply is wanted, holds fewer")
    return fits
