"""Threads that carry transfers out: one for each lane, in order of urgency, after what must come before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Condition, Lock, Thread

import numpy as np
from numpy.typing import NDArray

from ..memory.moves import Move
from .contract import Clock
from .torch_transfer import GUARD_S, Mark, TorchTransfer
from .transfers import Transfer

Failed = NDArray[np.int64]  # indices of pages of a move
Carry = Callable[[TorchTransfer], Failed]


@dataclass(slots=True, eq=False)
class Lane:
    """One direction between two memories, and the thread that serves it.

    ``ready``: what may begin. ``running``: what has begun. ``opposite``: the lane to which moves that yield give way.
    """

    carry: Carry
    ready: list[TorchTransfer] = field(default_factory=list)
    running: TorchTransfer | None = None
    opposite: Lane | None = None

    @property
    def goes_first(self) -> bool:
        """Moves of the opposite lane that yield must wait."""
        return self.running is not None or any(not transfer.move.yields for transfer in self.ready)

    def next(self) -> TorchTransfer | None:
        """What is to begin now."""
        held = self.opposite is not None and self.opposite.goes_first
        able = [transfer for transfer in self.ready if not (held and transfer.move.yields)]
        return min(able, key=lambda transfer: (not transfer.urgent, transfer.order), default=None)


class TransferQueue:
    """Carries transfers out on a thread per lane. Every public method may be called from any thread.

    A transfer begins once all that it comes ``after`` have ended: urgent ones first, then in the order submitted; one
    that yields waits while the opposite lane has anything to do. What an urgent transfer waits for is urgent too.
    """

    def __init__(self, carriers: Mapping[str, Carry], opposites: Sequence[tuple[str, str]], clock: Clock) -> None:
        """Start a thread for each of ``carriers``, by the lane's name.

        Parameters
        ----------
        carriers: each carries a transfer out, blocking, and returns the indices of the pages that failed. An exception
            makes all of them fail and leaves a line in :meth:`problems`.
        opposites: pairs of lanes whose moves can yield to each other.
        clock: for the times of transfers; read from the threads.
        """
        self._clock = clock
        lock = Lock()
        self._work, self._news = Condition(lock), Condition(lock)
        self._lanes = {name: Lane(carry) for name, carry in carriers.items()}
        for one, other in opposites:
            self._lanes[one].opposite, self._lanes[other].opposite = self._lanes[other], self._lanes[one]
        self._open: dict[TorchTransfer, Lane] = {}
        self._ended: list[Transfer] = []
        self._problems: list[str] = []
        self._submitted = 0
        self._closing = False
        self._threads = [
            Thread(target=partial(self._serve, lane), name=f"kvarena-{name}", daemon=True)
            for name, lane in self._lanes.items()
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, lane: str, move: Move, num_bytes: int, layers: int, now_s: float, after: Sequence[Transfer]
    ) -> TorchTransfer:
        """Queue ``move`` on ``lane``. Never blocks for long.

        Raises
        ------
        ValueError
            If the queue is closed, or one of ``after`` that has not ended is not of this queue.
        """
        with self._work:
            if self._closing:
                raise ValueError(f"{move.link}: the links are closed")
            self._submitted += 1
            transfer = TorchTransfer(move, num_bytes, layers, now_s, news=self._news, order=self._submitted)
            self._follow(transfer, after)
            self._open[transfer] = self._lanes[lane]
            if move.urgent:
                transfer.hurry()
            if not transfer.after:
                self._make_ready(transfer)
        return transfer

    def _follow(self, transfer: TorchTransfer, others: Iterable[Transfer]) -> None:
        for other in others:
            if isinstance(other, TorchTransfer) and other in self._open:
                transfer.after.add(other)
            elif not other.done:
                raise ValueError(f"{transfer.move.link} comes after {other.move.link} of other links")
        for one in transfer.after:
            one.followers.append(transfer)

    def poll(self) -> list[Transfer]:
        """What has ended since the last call, in that order."""
        with self._work:
            ended, self._ended = self._ended, []
        return ended

    @property
    def in_flight(self) -> bool:
        """Something was submitted that was not polled as ended."""
        with self._work:
            return bool(self._open or self._ended)

    def wait(self, timeout_s: float | None = None) -> None:
        """Block until something has ended that was not polled, nothing is in flight, or ``timeout_s`` has passed.

        Raises
        ------
        TimeoutError
            If nothing happened for minutes and no ``timeout_s`` was given.
        """
        with self._news:
            happened = self._news.wait_for(
                lambda: bool(self._ended) or not self._open, GUARD_S if timeout_s is None else timeout_s
            )
            if not happened and timeout_s is None:
                raise TimeoutError(f"none of {len(self._open)} transfers ended in {GUARD_S:g} s: {self._stuck()}")

    def arrived(self, transfer: TorchTransfer, layers: int, mark: Mark | None = None) -> None:
        """The next ``layers`` layers of ``transfer`` are there, or will be once ``mark`` is reached."""
        with self._news:
            if mark is None:
                transfer.layer_ends_s.extend([self._clock.now()] * layers)
            else:
                transfer.marks.extend([mark] * layers)
            transfer.arrived += layers
            self._news.notify_all()

    def cancel(self, transfer: Transfer) -> bool:
        """Call ``transfer`` off if it has not begun; True if so.

        It ends when it could have begun: whoever comes after it comes after all that it had to wait for.
        """
        with self._work:
            known = isinstance(transfer, TorchTransfer) and transfer in self._open
            if not known or transfer.cancelled or transfer.start_s is not None:
                return False
            assert isinstance(transfer, TorchTransfer)
            self._call_off(transfer)
        return True

    def problems(self) -> list[str]:
        """What went wrong since the last call."""
        with self._work:
            problems, self._problems = self._problems, []
        return problems

    def close(self, finish: Callable[[Move], bool]) -> bool:
        """Carry out what ``finish`` asks for and all that it comes after, call the rest off, and end the threads.

        True if they have ended; a thread that does not come back is left behind.
        """
        with self._work:
            needed = self._with_causes([transfer for transfer in self._open if finish(transfer.move)])
            idle = [transfer for transfer in self._open if transfer.start_s is None and not transfer.cancelled]
            for transfer in idle:
                if transfer not in needed:
                    self._call_off(transfer)
            self._closing = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join(GUARD_S)
        return not any(thread.is_alive() for thread in self._threads)

    def _serve(self, lane: Lane) -> None:
        """A lane's thread."""
        while (transfer := self._take(lane)) is not None:
            try:
                failed, problem = lane.carry(transfer), None
            except Exception as error:  # noqa: BLE001  the thread lives on, whatever a tier does
                failed = np.arange(transfer.move.pages)
                problem = f"{transfer.move.link}: {len(failed)} pages were not copied: {error!r}"
            with self._work:
                lane.running = None
                if problem is not None:
                    self._problems.append(problem)
                transfer.failed = failed
                self._end(transfer)
            del transfer  # not kept while this thread waits

    def _take(self, lane: Lane) -> TorchTransfer | None:
        """Begin the next transfer of ``lane``, waiting for it; None once nothing will come any more."""
        with self._work:
            while (transfer := lane.next()) is None:
                if self._closing and lane not in self._open.values():
                    return None
                self._work.wait()
            lane.ready.remove(transfer)
            lane.running = transfer
            transfer.start_s = self._clock.now()
        return transfer

    def _make_ready(self, transfer: TorchTransfer) -> None:
        self._open[transfer].ready.append(transfer)
        self._work.notify_all()

    def _end(self, transfer: TorchTransfer) -> None:
        """Let go what follows ``transfer``, and tell everybody."""
        stack, now_s = [transfer], self._clock.now()
        while stack:
            ended = stack.pop()
            del self._open[ended]
            ended.end_s = now_s
            if not ended.cancelled:
                ended.layer_ends_s += [now_s] * (ended.layers - len(ended.layer_ends_s))
            self._ended.append(ended)
            for follower in ended.followers:
                follower.after.discard(ended)
            free = [follower for follower in ended.followers if not follower.after]
            stack += [follower for follower in free if follower.cancelled]
            for follower in free:
                if not follower.cancelled:
                    self._make_ready(follower)
            ended.followers = []
        self._work.notify_all()
        self._news.notify_all()

    def _call_off(self, transfer: TorchTransfer) -> None:
        transfer.cancelled = True
        if not transfer.after:
            self._open[transfer].ready.remove(transfer)
            self._end(transfer)

    def _with_causes(self, transfers: list[TorchTransfer]) -> set[TorchTransfer]:
        """``transfers`` and everything that they wait for."""
        found, stack = set(transfers), list(transfers)
        while stack:
            new = stack.pop().after - found
            found |= new
            stack.extend(new)
        return found

    def _stuck(self) -> str:
        running = [lane.running.move.link for lane in self._lanes.values() if lane.running is not None]
        return f"{', '.join(running) or 'none'} running"
