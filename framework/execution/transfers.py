"""What the engine asks of a backend's links: moves in, futures out. Both backends fill these contracts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..memory.moves import Move
from ..policy import Tier


@dataclass(slots=True, eq=False)
class Transfer:
    """A move on its way: a future. Only the links that made it change it.

    Attributes
    ----------
    num_bytes: of the whole move. layers: equal parts in which it arrives, in order.
    submitted_s, start_s, end_s: seconds of the run's clock; ``start_s`` and ``end_s`` are None before.
    layer_ends_s: when each part arrived, as far as it is known (virtual clock).
    failed: indices of pages of the move that did not arrive intact, int64; set before ``end_s``.
    cancelled: it was called off before it began; ``end_s`` is set then.
    """

    move: Move
    num_bytes: int
    layers: int
    submitted_s: float
    start_s: float | None = None
    end_s: float | None = None
    layer_ends_s: list[float] = field(default_factory=list)
    failed: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    cancelled: bool = False

    @property
    def done(self) -> bool:
        """It has ended, for better or worse."""
        return self.end_s is not None


class Links(Protocol):
    """Carries moves out, several at a time, in any order that ``after`` allows."""

    def submit(self, move: Move, now_s: float, after: Sequence[Transfer] = ()) -> Transfer:
        """Begin ``move`` once all of ``after`` have ended (a failed or cancelled one too). Never blocks.

        Urgent moves go before others, moves of equal urgency in the order given; ``move.yields`` waits while another
        runs in the opposite direction.
        """
        ...

    def poll(self, now_s: float) -> list[Transfer]:
        """The transfers that have ended since the last call, in the order of their ends. Never blocks."""
        ...

    def next_end_s(self, now_s: float) -> float:
        """When a transfer ends next if none is submitted before, or earlier, never later: ``inf`` if nothing is in
        flight. On a real clock, which cannot know: ``now_s`` while anything is in flight."""
        ...

    def wait(self, timeout_s: float | None = None) -> None:
        """Nothing computes: return once a transfer has ended that was not polled yet, or ``timeout_s`` have passed, or
        at once if nothing is in flight. On a virtual clock: at once."""
        ...

    def cancel(self, transfer: Transfer) -> bool:
        """Call ``transfer`` off if it has not begun; True if so (it is polled as ended)."""
        ...

    def problems(self) -> list[str]:
        """Warnings since the last call, one line each (a disk that is full, a page that failed its checksum)."""
        ...

    def closed(self) -> Collection[Tier]:
        """Tiers that take nothing more (a disk that is full); what is in them can still be read."""
        ...

    def close(self) -> None:
        """Finish what must be finished and free what is held."""
        ...
