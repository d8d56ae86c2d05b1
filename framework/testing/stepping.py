"""An eviction policy step by step: which pages came, were used and left, as a replay of page requests shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from ..options import read_option
from ..policy import Eviction, PageTrace, RunView
from ..replay import blocks_by_hooks, prefixes_by_hooks
from ..replay.requests import in_order
from ..replay.trace import Semantics, gather
from ..schema import ConfigError, build
from ..workloads.build import workload_schema
from ..workloads.common import Setting
from ..workloads.tokenizer import PieceTokenizer

VOCABULARY = 1 << 30


@dataclass(frozen=True, slots=True)
class Step:
    """What happened to one page. Two steps are equal if they are of the same page at the same time.

    Attributes
    ----------
    tick: logical time. what: ``stored``, ``used`` or ``evicted``. page: its number in the trace, or, of a request's
        page that is not full, a number from ``trace.distinct`` up.
    start: its place in the context. conversation: which used it last. uses: by how many requests. last_use: tick.
    """

    tick: int
    what: Literal["stored", "used", "evicted"]
    page: int
    start: int
    conversation: int
    uses: int
    last_use: int

    def __str__(self) -> str:
        whose = f"conversation {self.conversation}, page {self.start} of its context"
        return f"tick {self.tick}: page {self.page} {self.what} ({whose}; {self.uses} uses, last at {self.last_use})"


class _Witness:
    """Stands before a policy and writes down what the hooks are told."""

    def __init__(self, policy: Eviction) -> None:
        self.policy, self.steps = policy, list[Step]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def inserted(self, run: RunView, pages: int) -> None:
        self._note("stored", run)
        self.policy.inserted(run, pages)

    def accessed(self, run: RunView) -> None:
        self._note("used", run)
        self.policy.accessed(run)

    def removed(self, run: RunView, evicted: bool) -> None:
        self._note("evicted", run)
        self.policy.removed(run, evicted)

    def _note(self, what: Literal["stored", "used", "evicted"], run: RunView) -> None:
        where = (int(run.keys[0]), run.start, run.conversation)
        self.steps.append(Step(self.policy.view.tick, what, *where, run.uses, run.last_use))


def steps_of(policy: Eviction, trace: PageTrace, capacity: int, semantics: Semantics = "prefix") -> list[Step]:
    """All that a tier of ``capacity`` pages under ``policy`` does when the requests of ``trace`` come, by its hooks.

    Parameters
    ----------
    policy: a new one; it is bound to the tier.
    semantics: ``prefix``: leading pages hit, of a context only the end may leave; ``block``: pages one by one.

    Raises
    ------
    RuntimeError
        If the policy names a page that may not leave, or too few.
    ValueError
        If a request of ``prefix`` needs more than ``capacity`` pages.
    """
    needs = max((np.diff(trace.bounds) + np.array(trace.tails)).tolist(), default=0)
    if semantics == "prefix" and needs > capacity:
        raise ValueError(f"capacity is {capacity}; it must be at least {needs} pages, what the largest request needs")
    witness = _Witness(policy)
    replay = prefixes_by_hooks if semantics == "prefix" else blocks_by_hooks
    replay(cast(Eviction, witness), trace, capacity, 1)
    return witness.steps


def chat_trace(conversations: int = 12, turns: int = 5, seed: int = 0) -> PageTrace:
    """Chats that take turns by lot: each asks for two pages that all share, its own history, and up to 3 new pages."""
    random = np.random.default_rng(seed)
    order = random.permutation(np.repeat(np.arange(conversations), turns)).tolist()
    numbers: dict[tuple[int, int], int] = {}
    pages, bounds, limits = list[int](), [0], list[int]()
    lengths = dict.fromkeys(range(conversations), 2)
    for conversation in order:
        lengths[conversation] += int(random.integers(0, 4))
        keys = [(conversation if place > 1 else -1, place) for place in range(lengths[conversation])]
        pages += [numbers.setdefault(key, len(numbers)) for key in keys]
        bounds.append(len(pages))
        limits.append(len(keys) - 1)
    count = len(order)
    return PageTrace(pages, len(numbers), bounds, limits, [0] * count, [float(i) for i in range(count)], order)


def workload_trace(name: str, *, page_size: int = 16, seed: int = 0, **knobs: object) -> PageTrace:
    """The pages that a workload asks for, as ``task=replay`` sees them: ``workload_trace("mooncake", path=...)``.

    ``knobs``: as on the command line after ``workload.``; those left out are the YAML's.

    Raises
    ------
    ConfigError
        If there is no such workload or knob, or its file cannot be read.
    """
    schema = workload_schema(name)
    given = {key: value for key, value in (read_option(f"workload/{name}.yaml") or {}).items() if key != "name"}
    workload = build(schema, {**given, **knobs}, f"workload={name}")
    try:
        opened = workload.open(Setting(seed, VOCABULARY, PieceTokenizer(VOCABULARY), True))
        return gather(in_order(opened), "prefix", page_size).trace
    except OSError as error:
        raise ConfigError(f"workload={name}: {error.filename}: {error.strerror}") from error
