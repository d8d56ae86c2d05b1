"""Moves on their way: submitted in order, kept apart wherever two touch one slot, recorded when they end."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from .execution.transfers import Links, Transfer
from .memory import PageStore
from .memory.moves import Move
from .memory.run import Slots
from .metrics.records import Recorder, TransferRecord
from .policy import Tier


class _Hazards:
    """The last transfers that touch each slot of a tier, by number; one that is no longer in flight is no hazard."""

    def __init__(self, capacity: int) -> None:
        self.writer = np.zeros(capacity, dtype=np.int64)
        self.reader = np.zeros(capacity, dtype=np.int64)


class Traffic:
    """Transfers in flight between the tiers of ``store``. Without ``links`` there is only one tier, and never any."""

    def __init__(self, store: PageStore, links: Links | None, recorder: Recorder) -> None:
        if links is None and len(store.pools) > 1:
            raise ValueError(f"a store with {len(store.pools)} tiers needs links between them")
        self._store = store
        self._links = links
        self._recorder = recorder
        self._hazards = {tier: _Hazards(pool.capacity) for tier, pool in store.pools.items()}
        self._flying: dict[int, Transfer] = {}
        self._number: dict[Transfer, int] = {}
        # A reader -> readers of the same slots before it; what may be called off -> all that it followed.
        self._also: dict[int, list[int]] = {}
        self._submitted = 0

    @property
    def busy(self) -> bool:
        """Something is in flight."""
        return bool(self._flying)

    def flush(self, now_s: float) -> list[Transfer]:
        """Submit what the store wants moved since the last call; returns these transfers."""
        if self._links is None or not self._store.outbox.moves:
            return []
        return [self._submit(move, now_s) for move in self._store.outbox.take()]

    def _submit(self, move: Move, now_s: float) -> Transfer:
        assert self._links is not None
        source, target = self._hazards[move.source], self._hazards[move.target]
        earlier = sorted(self._reach(source.reader[move.source_slots]))
        after = {*self._known(source.writer[move.source_slots]), *self._touching(move.target, move.target_slots)}
        transfer = self._links.submit(move, now_s, [self._flying[number] for number in sorted(after)])
        self._submitted += 1
        number = self._submitted
        self._flying[number], self._number[transfer] = transfer, number
        if move.reason == "fetch":
            self._also[number] = sorted(after)
        elif earlier:
            self._also[number] = earlier
        source.reader[move.source_slots] = number
        target.writer[move.target_slots] = number
        return transfer

    def _known(self, numbers: NDArray[np.int64]) -> list[int]:
        """Those of ``numbers`` that are in flight."""
        if not self._flying:
            return []
        return [number for number in self._recent(numbers) if number in self._flying]

    def _touching(self, tier: Tier, slots: Slots) -> set[int]:
        hazards = self._hazards[tier]
        return self._reach(hazards.reader[slots]) | self._reach(hazards.writer[slots])

    def _reach(self, numbers: NDArray[np.int64]) -> set[int]:
        """Those of ``numbers`` that are in flight, and of what each of them stands for."""
        if not self._flying:
            return set()
        found: set[int] = set()
        stack = self._recent(numbers)
        while stack:
            number = stack.pop()
            if number not in found:
                found.add(number)
                stack += self._also.get(number, ())
        return found & self._flying.keys()

    def _recent(self, numbers: NDArray[np.int64]) -> list[int]:
        """Those of ``numbers``, each once, that are in flight or stand for something that is."""
        oldest = next(iter(self._flying))
        if self._also:
            oldest = min(oldest, next(iter(self._also)))
        return list(set(numbers[numbers >= oldest].tolist()))

    def blocking(self, slots: Slots) -> list[Transfer]:
        """Transfers in flight that read or write the device ``slots``, which an iteration is about to overwrite."""
        if not self._flying or not len(slots):
            return []
        return [self._flying[number] for number in sorted(self._touching(Tier.DEVICE, slots))]

    def excess_down(self, pages: int) -> list[Transfer]:
        """The oldest transfers from the device downwards, without which at most ``pages`` pages are on their way."""
        down = [transfer for transfer in self._flying.values() if transfer.move.source is Tier.DEVICE]
        left = sum(transfer.move.pages for transfer in down)
        excess: list[Transfer] = []
        for transfer in down:
            if left <= pages:
                break
            excess.append(transfer)
            left -= transfer.move.pages
        return excess

    def ended(self, now_s: float) -> list[Transfer]:
        """The transfers that have ended since the last call, recorded."""
        if self._links is None or not self._flying:
            return []
        done = self._links.poll(now_s)
        for transfer in done:
            number = self._number.pop(transfer)
            del self._flying[number]
            if not transfer.cancelled:
                self._recorder.transfer(self._record(transfer))
        if done and self._also:  # an entry stays as long as something that it stands for is in flight
            known, flying = self._also, self._flying
            left = {number: [o for o in after if o in flying or o in known] for number, after in known.items()}
            self._also = {number: after for number, after in left.items() if after}
        return done

    def _record(self, transfer: Transfer) -> TransferRecord:
        move = transfer.move
        start_s, end_s = transfer.start_s, transfer.end_s
        assert start_s is not None and end_s is not None
        sizes = move.pages, transfer.layers, transfer.num_bytes
        ends_s = transfer.layer_ends_s if len(transfer.layer_ends_s) == transfer.layers > 1 else ()
        first = move.layers[0] if move.layers else 0
        return TransferRecord(start_s, end_s, move.link, *sizes, move.reason, move.request, first, ends_s)

    def cancel(self, transfers: Iterable[Transfer]) -> None:
        """Call off those of ``transfers`` that have not begun."""
        for transfer in transfers:
            if self._links is not None and not transfer.done:
                self._links.cancel(transfer)

    def next_end_s(self, now_s: float) -> float:
        """See ``Links.next_end_s``."""
        return self._links.next_end_s(now_s) if self._links is not None and self._flying else float("inf")

    def closed(self) -> Collection[Tier]:
        """See ``Links.closed``."""
        return () if self._links is None else self._links.closed()

    def wait(self, timeout_s: float) -> None:
        """See ``Links.wait``."""
        if self._links is not None and self._flying:
            self._links.wait(timeout_s if timeout_s < float("inf") else None)
