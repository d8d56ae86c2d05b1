"""What the executor remembers of a narrowed context beside the bytes in its pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Front(Protocol):
    """The first whole pages of a context in a form of their own: planes of different length, or packed numbers.

    Immutable: packing again makes a new one. It knows its layout, not its pages: those may have moved between two
    steps (swapped out and back), so that every reading names the table of the day.

    Attributes
    ----------
    pages: how many of the context's pages it takes, from the first on.
    counts: int64 [L, G], tokens of each plane (layer x KV head), on the pool's device.
    columns: the most of them, ``counts.max()`` (a number, so that nobody waits for a device).
    """

    @property
    def pages(self) -> int: ...

    @property
    def counts(self) -> Tensor: ...

    @property
    def columns(self) -> int: ...

    def keys(self, pool: Tensor, table: Tensor, layer: int | None = None) -> Tensor:
        """Float32 [L, G, columns, head_dim], or [G, columns, head_dim] of one ``layer``, as cached (unpacked, not
        rotated any further); what stands behind a plane's count is finite."""
        ...

    def values(self, pool: Tensor, table: Tensor, layer: int | None = None) -> Tensor:
        """As :meth:`keys`."""
        ...


@dataclass(slots=True)
class ContextMemory:
    """One narrowed context, between two steps.

    Its cache has n *columns*: first those of the front, then one for each slot of the ordinary pages behind it. Column
    c >= front.columns of every plane is slot ``front.pages * page_size + c - front.columns``; without a front, column
    and slot are the same.

    Attributes
    ----------
    positions: int64 [L, G, n], true positions; -1 in the columns of a front that a plane does not fill.
    state: the policy's tensors, [..., n].
    notes: the policy's tensors of the context as a whole.
    front: None where all slots are ordinary.
    """

    positions: Tensor
    state: dict[str, Tensor] = field(default_factory=dict)
    front: Front | None = None
    notes: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def empty(cls, num_layers: int, num_kv_heads: int, device: torch.device) -> ContextMemory:
        """Of a context of which nothing is cached yet."""
        return cls(torch.empty(num_layers, num_kv_heads, 0, dtype=torch.int64, device=device))

    @property
    def columns(self) -> int:
        """n."""
        return self.positions.shape[-1]

    @property
    def front_columns(self) -> int:
        """Columns that are not ordinary slots."""
        return 0 if self.front is None else self.front.columns

    @property
    def front_pages(self) -> int:
        """Pages of the front."""
        return 0 if self.front is None else self.front.pages

    def slots(self, page_size: int) -> int:
        """Slots that the context takes in its pages."""
        return self.front_pages * page_size + self.columns - self.front_columns

    def extend(self, tokens: int, count: int) -> None:
        """The context's newest ``count`` of ``tokens`` tokens have been written behind the others."""
        new = torch.arange(tokens - count, tokens, device=self.positions.device)
        self.positions = torch.cat((self.positions, new.expand(*self.positions.shape[:2], count)), dim=-1)
        for name, held in self.state.items():
            self.state[name] = torch.cat((held, held.new_zeros(*held.shape[:-1], count)), dim=-1)

    def take(self, columns: Tensor) -> None:
        """Let the columns be what ``columns`` says.

        Parameters
        ----------
        columns: int64 [L, G, n'], for each new column the old one that it holds, -1: nothing (with a front only, which
            is set before).
        """
        padded = self.front is not None
        self.positions = _taken(self.positions, columns, -1, padded)
        for name, held in self.state.items():
            per_head = held.shape[1] // columns.shape[1]
            wide = columns if per_head == 1 else columns.repeat_interleave(per_head, dim=1)
            wide = wide.reshape(*wide.shape[:2], *(1,) * (held.dim() - 3), wide.shape[-1])
            self.state[name] = _taken(held, wide, 0, padded)


def _taken(held: Tensor, columns: Tensor, empty: int, padded: bool) -> Tensor:
    """``held`` [L, heads, ..., n] gathered by ``columns`` [L, heads, 1..., n'], ``empty`` where a column is -1, which
    only ``padded`` ones may be."""
    index = columns.expand(*held.shape[:-1], columns.shape[-1])
    if not padded:
        return held.gather(-1, index)
    return held.gather(-1, index.clamp(min=0)).masked_fill(columns < 0, empty)
