"""Clocks: seconds since the run began, virtual, with idle waits skipped, or as the wall shows them."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class VirtualClock:
    """Moves only by what it is told: for simulated runs, which are the same bit for bit."""

    time_s: float = 0.0

    def now(self) -> float:
        return self.time_s

    def ends(self, started_s: float, duration_s: float) -> float:
        """When an iteration ends that began at ``started_s``; ``duration_s`` is 0 or more.

        Raises
        ------
        ValueError
            If ``duration_s`` is negative or not a number.
        """
        if not duration_s >= 0.0:
            raise ValueError(f"duration_s is {duration_s}, expected a number >= 0")
        return started_s + duration_s

    def wait_until(self, time_s: float) -> None:
        """Jump to ``time_s``; a time that has passed is a no-op."""
        self.time_s = max(self.time_s, time_s)


class SkipIdleClock:
    """Real time, in which waits for the next event take none: it jumps over them. Starts with the first call.

    What the engine does between iterations counts as it does in a server.
    """

    def __init__(self) -> None:
        self._origin_s: float | None = None

    def now(self) -> float:
        reading_s = time.perf_counter()
        if self._origin_s is None:
            self._origin_s = reading_s
        return reading_s - self._origin_s

    def ends(self, started_s: float, duration_s: float) -> float:
        """Now: real time has moved by itself while the iteration was executed."""
        return self.now()

    def wait_until(self, time_s: float) -> None:
        """Jump to ``time_s``; a time that has passed is a no-op."""
        idle_s = time_s - self.now()
        if idle_s > 0.0 and self._origin_s is not None:
            self._origin_s -= idle_s


class WallClock(SkipIdleClock):
    """Real time; waits are slept through."""

    def wait_until(self, time_s: float) -> None:
        """Sleep until ``time_s``; a time that has passed is a no-op."""
        idle_s = time_s - self.now()
        if idle_s > 0.0:
            time.sleep(idle_s)
