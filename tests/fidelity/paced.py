"""The torch backend on the simulator's time: a real model, real K/V and real copies, and every duration simulated."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from kvarena.framework.backends import Backend
from kvarena.framework.execution.clocks import VirtualClock
from kvarena.framework.execution.contract import Batch, StepResult
from kvarena.framework.execution.torch_transfer import TorchTransfer
from kvarena.framework.execution.transfers import Transfer
from kvarena.framework.memory.moves import Move
from kvarena.framework.policy import Costs, Tier


class PacedLinks:
    """Every move is made by the real links and timed by the simulated ones; who is told that one has ended finds its
    pages there."""

    def __init__(self, real: Any, simulated: Any) -> None:
        self._real, self._simulated = real, simulated
        self._twins: dict[Transfer, TorchTransfer] = {}

    def submit(self, move: Move, now_s: float, after: Sequence[Transfer] = ()) -> Transfer:
        transfer: Transfer = self._simulated.submit(move, now_s, after)
        self._twins[transfer] = self._real.submit(move, now_s, [self._twins[one] for one in after])
        return transfer

    def poll(self, now_s: float) -> list[Transfer]:
        ended: list[Transfer] = self._simulated.poll(now_s)
        self.carry_out(ended)
        return ended

    def carry_out(self, transfers: Sequence[Transfer]) -> None:
        """Wait until the pages of ``transfers`` have really moved."""
        for transfer in transfers:
            twin = self._twins[transfer]
            twin.wait()
            assert twin.cancelled or not len(twin.failed)

    def cancel(self, transfer: Transfer) -> bool:
        called_off: bool = self._simulated.cancel(transfer)
        if called_off and not self._real.cancel(self._twins[transfer]):
            self._twins[transfer].wait()  # the thread was faster: its pages are nobody's
        return called_off

    def next_end_s(self, now_s: float) -> float:
        return float(self._simulated.next_end_s(now_s))

    def wait(self, timeout_s: float | None = None) -> None: ...

    def problems(self) -> list[str]:
        return list(self._real.problems())

    def closed(self) -> Collection[Tier]:
        closed: Collection[Tier] = self._real.closed()
        return closed

    def close(self) -> None:
        self._real.close()


class PacedExecutor:
    """Computes on the real executor and answers the simulated one's durations, stalls and costs."""

    max_steps = 1
    sums_decodes = False

    def __init__(self, real: Any, simulated: Any, links: PacedLinks | None) -> None:
        self._real, self._simulated, self._links = real, simulated, links

    @property
    def costs(self) -> Costs:
        costs: Costs = self._simulated.costs
        return costs

    def run(self, batch: Batch) -> StepResult:
        timed: StepResult = self._simulated.run(batch)
        if self._links is not None:
            self._links.carry_out([*batch.waits, *batch.loads])
        computed: StepResult = self._real.run(replace(batch, waits=[], loads=[]))
        return StepResult(computed.tokens, timed.duration_s, timed.forward_s, timed.stall_s)

    def duration_until(self, batch: Batch, limit_s: float) -> int:
        return 1

    def close(self) -> None:
        self._real.close()


def paced(real: Backend, simulated: Backend) -> Backend:
    """``real`` with the times of ``simulated``, which must be of the same sizes."""
    assert real.pages == simulated.pages
    links = PacedLinks(real.links, simulated.links) if real.links is not None else None
    executor = PacedExecutor(real.executor, simulated.executor, links)
    return replace(real, executor=executor, links=links, clock=VirtualClock())
