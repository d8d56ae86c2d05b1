"""Bringing pages from disk to the host before their request is served."""

from __future__ import annotations

from ..policy import Tier
from .lease import Match
from .pages import Pages
from .room import Room
from .run import Run

PIECE_PAGES = 32


class Fetches:
    """Runs on their way from disk to host: claimed, so that nobody fetches or computes them again, and pinned."""

    def __init__(self, pages: Pages, room: Room) -> None:
        self.runs: set[Run] = set()
        self._pages = pages
        self._room = room

    def wanted_pages(self, match: Match) -> int:
        """Pages of ``match`` that only the disk holds."""
        return sum(pages for _, pages in _on_disk_alone(match))

    def start(self, match: Match, request: int, *, in_pieces: bool = False) -> list[Run]:
        """Start fetching what ``match`` has on disk alone, front first, as far as the host has room; what was begun."""
        wanted = [run if pages == run.pages else self._pages.split(run, pages) for run, pages in _on_disk_alone(match)]
        if in_pieces:
            wanted = [piece for run in wanted for piece in self._cut(run)]
        for run in wanted:  # all at once: making room may change what nobody holds
            self._pin(run)
        fits = [run for run in wanted if self._start(run, request)]
        for run in wanted:
            if run not in self.runs:
                self._unpin(run)
        return fits

    def _cut(self, run: Run) -> list[Run]:
        """``run`` in pieces, front first, each of which can be called off."""
        pieces: list[Run] = []
        while run.pages > PIECE_PAGES:
            pieces.append(self._pages.split(run, PIECE_PAGES))
        return [*pieces, run]

    def _pin(self, run: Run) -> None:
        for held in run.chain():  # what a context begins with may not leave where its continuation stays
            self._pages.pin(held)

    def _unpin(self, run: Run) -> None:
        for held in list(run.chain()):
            self._pages.unpin(held)

    def _start(self, run: Run, request: int) -> bool:
        host = self._pages.pools[Tier.HOST]
        if run.pages > host.available_pages:
            return False
        run.claimed = True
        self._room.make(Tier.HOST, run.pages)
        slots = host.take(run.pages)
        self._pages.copy(run, Tier.DISK, Tier.HOST, slots, "fetch", request=request, urgent=True)
        self._pages.enter(run, Tier.HOST, slots)
        self.runs.add(run)
        return True

    def ended(self, run: Run, *, arrived: bool) -> None:
        """The fetch of ``run`` has ended; what did not arrive leaves the host again."""
        self.runs.remove(run)
        run.claimed = False
        run.stamp += 1
        if not arrived:
            self._pages.leave(run, Tier.HOST, evicted=False)
        self._unpin(run)


def _on_disk_alone(match: Match) -> list[tuple[Run, int]]:
    """The runs of ``match`` that no nearer tier holds and nobody is filling, with their matching pages."""
    every = [*match.chain, *([(match.tail, 1)] if match.tail else [])]
    return [
        (run, pages)
        for run, pages in every
        if run.slots[Tier.DISK] is not None
        and run.slots[Tier.HOST] is None
        and run.slots[Tier.DEVICE] is None
        and not run.claimed
    ]
