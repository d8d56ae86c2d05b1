"""What prefix caches remember of pages that have left."""

from __future__ import annotations

from collections import deque


class Gone:
    """Pages ``start`` .. ``stop`` of a chain, the last of which left first."""

    __slots__ = ("ghost", "start", "stop")

    def __init__(self, start: int, stop: int, ghost: int) -> None:
        self.start, self.stop, self.ghost = start, stop, ghost


class Ghosts:
    """Lists of pages that have left, in the order of leaving; ``lengths``: pages of each.

    ``gone``: what is known of a chain, the pages nearest to its end first. What is no longer remembered is empty.
    """

    def __init__(self, lists: int) -> None:
        self.lengths = [0] * lists
        self.lines: list[deque[Gone]] = [deque() for _ in range(lists)]
        self.gone: dict[int, list[Gone]] = {}

    def remember(self, chain: int, start: int, stop: int, ghost: int) -> None:
        """Pages ``start`` .. ``stop`` of ``chain`` have left."""
        gone = Gone(start, stop, ghost)
        self.gone.setdefault(chain, []).append(gone)
        self.lines[ghost].append(gone)
        self.lengths[ghost] += stop - start

    def forget(self, ghost: int, pages: int) -> None:
        """So many pages, those that left first, are remembered no longer."""
        line = self.lines[ghost]
        self.lengths[ghost] -= pages
        while pages:
            gone = line[0]
            if gone.stop - gone.start > pages:
                gone.stop -= pages
                return
            pages -= gone.stop - gone.start
            gone.stop = gone.start
            line.popleft()

    def recall(self, chain: int) -> list[Gone]:
        """What is remembered of ``chain``, the pages nearest to its beginning first; the lists hold it no longer.

        ``lengths`` is the caller's to set right: a policy may look at it page by page.
        """
        found = []
        for gone in reversed(self.gone.pop(chain, ())):
            if gone.stop > gone.start:
                found.append(Gone(gone.start, gone.stop, gone.ghost))
                gone.stop = gone.start
        return found
