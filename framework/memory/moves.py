"""What the store wants copied between tiers: slots are numbers, and a move makes their content true."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ..policy import Tier
from .run import Keys, Slots


@dataclass(frozen=True, slots=True)
class Move:
    """Copy ``source_slots`` of tier ``source`` to ``target_slots`` of tier ``target``, page by page, in this order.

    The store already counts the pages as resident in ``target`` and may have given the source slots away: moves take
    effect in the order in which the store emits them, and whoever carries them out keeps that order wherever two touch
    one slot.

    Attributes
    ----------
    source_slots, target_slots: int32 [pages].
    keys: int64 [pages], the pages' content keys (an address for what is stored on disk).
    parents: int64 [pages], the key of the page before each, 0 before a context's first.
    reason: why, for the records: ``swap-in``, ``swap-out``, ``write-back``, ``fetch``.
    request: whom it serves, -1 for none.
    layers: the first layer and how many; None: all.
    urgent: somebody waits for it.
    yields: it waits while anything runs in the other direction of its link.
    """

    source: Tier
    target: Tier
    source_slots: Slots
    target_slots: Slots
    keys: Keys
    parents: Keys
    reason: str
    request: int = -1
    layers: tuple[int, int] | None = None
    urgent: bool = False
    yields: bool = False

    @property
    def pages(self) -> int:
        """Number of pages."""
        return len(self.source_slots)

    @property
    def link(self) -> str:
        """Its name in records, such as ``host->device``."""
        return f"{self.source.name.lower()}->{self.target.name.lower()}"

    def joins(self, other: Move) -> bool:
        """True if ``other`` can follow it as one copy; fetches stay apart, so that each can be called off."""
        if self.reason == "fetch":
            return False
        mine = (self.source, self.target, self.reason, self.request, self.layers, self.urgent, self.yields)
        return mine == (
            other.source,
            other.target,
            other.reason,
            other.request,
            other.layers,
            other.urgent,
            other.yields,
        )

    def joined(self, others: list[Move]) -> Move:
        """It and ``others``, which follow it, as one."""
        every = [self, *others]
        return replace(
            self,
            source_slots=np.concatenate([move.source_slots for move in every]),
            target_slots=np.concatenate([move.target_slots for move in every]),
            keys=np.concatenate([move.keys for move in every]),
            parents=np.concatenate([move.parents for move in every]),
        )


@dataclass(slots=True)
class Outbox:
    """Moves in the order in which they must take effect, until somebody takes them."""

    moves: list[Move] = field(default_factory=list)

    def add(self, move: Move) -> None:
        """Append ``move``; one of no pages is a no-op."""
        if move.pages:
            self.moves.append(move)

    def take(self) -> list[Move]:
        """All moves since the last call; neighbours that are alike and fill different slots come as one."""
        taken, self.moves = self.moves, []
        groups: list[list[Move]] = []
        filled: set[int] = set()  # by the last group, but for its last move
        for move in taken:
            if groups and groups[-1][0].joins(move):
                filled.update(groups[-1][-1].target_slots.tolist())
                if filled.isdisjoint(move.target_slots.tolist()):
                    groups[-1].append(move)
                    continue
            groups.append([move])
            filled = set()
        return [group[0].joined(group[1:]) if len(group) > 1 else group[0] for group in groups]
