"""A small real model whose pages really move: threads, a host pool and files."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toy import Run, ToyCosts, ToyWorkload, serve

from kvarena.framework.execution.clocks import SkipIdleClock
from kvarena.framework.execution.contract import Batch, StepResult
from kvarena.framework.execution.disk import DiskPages
from kvarena.framework.execution.host_pool import host_pool
from kvarena.framework.execution.models import LoadedModel
from kvarena.framework.execution.page_copies import HostCopies
from kvarena.framework.execution.torch_executor import TorchExecutor
from kvarena.framework.execution.torch_links import TorchLinks
from kvarena.framework.execution.transfers import Transfer
from kvarena.framework.memory.moves import Move
from kvarena.framework.policy import Tier, TokenTruncation
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.prefetch.none import NoReuse
from kvarena.policies.scheduling.chunked import Chunked


class SlowCopies(HostCopies):
    """Copies that dawdle now and then, a layer at a time: a wait that was forgotten changes the answer."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng

    def copy(self, pools: Any, slots: Any, layers: tuple[int, int], arrived: Any = None) -> None:
        for layer in range(layers[0], sum(layers)):
            if self.rng.random() < 0.3:
                time.sleep(self.rng.random() * 0.003)
            super().copy(pools, slots, (layer, 1), arrived)


class CountedLinks(TorchLinks):
    """``moves``: pages by link."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.moves: Counter[str] = Counter()

    def submit(self, move: Move, now_s: float, after: Sequence[Transfer] = ()) -> Any:
        self.moves[move.link] += move.pages
        return super().submit(move, now_s, after)


class HookedExecutor(TorchExecutor):
    """Calls ``before`` before each iteration. Its costs are the toy's: loading pays on any machine."""

    before: Callable[[], None] = staticmethod(lambda: None)

    def run(self, batch: Batch) -> StepResult:
        self.before()
        return super().run(batch)

    @property
    def costs(self) -> Any:
        return ToyCosts()


@dataclass
class Outcome:
    """What a run left: ``faults`` of the disk by kind, lines of ``problems``."""

    run: Run
    moves: Counter[str]
    faults: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def outputs(self) -> dict[tuple[int, int], list[int]]:
        return self.run.recording.outputs()

    @property
    def stall_s(self) -> float:
        return sum(record.stall_s for record in self.run.recording.steps)


def stateless(
    model: LoadedModel, workload: ToyWorkload, page_size: int, sharing: Mapping[int, int] | None = None
) -> dict[tuple[int, int], list[int]]:
    """The tokens without any reuse, with room for all."""
    ample = -(-workload.total() // page_size) + len(workload) * 3
    policies = {"eviction": LRU(), "prefetch": NoReuse(), "scheduling": Chunked()}
    executor = TorchExecutor(model, ample, page_size, sharing=sharing)
    return serve(workload, ample, page_size, **policies, executor=executor).recording.outputs()  # type: ignore[arg-type]


def page_bytes(model: LoadedModel, page_size: int) -> int:
    return model.shape.kv_bytes_per_token * page_size


def serve_for_real(
    model: LoadedModel,
    workload: ToyWorkload,
    pages: Mapping[Tier, int],
    page_size: int,
    *,
    disk: DiskPages | None = None,
    seed: int = 0,
    slow: bool = True,
    before: Callable[[], None] = lambda: None,
    sharing: Mapping[int, int] | None = None,
    decoupled: bool = False,
    **policies: Any,
) -> Outcome:
    """Serve ``workload`` with ``pages`` of each tier; ``disk`` is closed at the end. ``before`` each iteration."""
    clock, rng = SkipIdleClock(), random.Random(seed)
    lossy = {"truncation": _narrows(policies), "sharing": sharing, "decoupled": decoupled}
    executor = HookedExecutor(model, pages[Tier.DEVICE], page_size, **lossy)
    executor.before = before
    host = host_pool(executor.pool, pages[Tier.HOST]) if Tier.HOST in pages else None
    make: Callable[[], HostCopies] | None = (lambda: SlowCopies(rng)) if slow else None
    links = CountedLinks(executor.pool, host, disk, clock, make_copies=make)
    below = {tier: count for tier, count in pages.items() if tier is not Tier.DEVICE}
    try:
        run = serve(
            *(workload, pages[Tier.DEVICE], page_size),
            **policies,
            below=below,
            executor=executor,
            links=links,
            clock=clock,
        )
    finally:
        links.close()
    found = Outcome(run, links.moves, disk.faults if disk is not None else {}, links.problems())
    store = run.engine.store
    assert all(store.available(tier) == pool.capacity for tier, pool in store.pools.items()), "a page is still held"
    return found


def _narrows(policies: Mapping[str, Any]) -> TokenTruncation | None:
    truncation = policies.get("truncation")
    return truncation if isinstance(truncation, TokenTruncation) else None


def open_disk(model: LoadedModel, folder: Path, pages: int, page_size: int, **options: Any) -> DiskPages:
    """A disk tier for pages of ``model``."""
    return DiskPages.open(folder, pages, page_bytes(model, page_size), "small", **({"persist": False} | options))
