"""Where the vectors of a context lie in the pool, as row numbers: all layers and heads are read or moved at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PoolRows:
    """The pool [num_pages, L, 2, G, page_size, head_dim] as rows of head_dim numbers.

    K of the token in slot s of layer l and head g is row ``planes[l * G + g] + of_slots(table, s)``, its V
    ``values`` rows behind.
    """

    pool: Tensor
    planes: Tensor  # int64 [L * G]
    kinds: Tensor  # int64 [2, 1]: 0 for K, ``values`` for V

    @classmethod
    def of(cls, pool: Tensor) -> PoolRows:
        """``pool`` is contiguous."""
        _, num_layers, _, num_kv_heads, page_size, _ = pool.shape
        layers = torch.arange(num_layers, device=pool.device)[:, None] * (2 * num_kv_heads)
        heads = torch.arange(num_kv_heads, device=pool.device)
        kinds = torch.tensor([[0], [num_kv_heads * page_size]], device=pool.device)
        return cls(pool, ((layers + heads) * page_size).flatten(), kinds)

    @property
    def values(self) -> int:
        """How many rows the V of a token lies behind its K."""
        return self.pool.shape[3] * self.pool.shape[4]

    @property
    def page_size(self) -> int:
        """Slots of a page."""
        return self.pool.shape[4]

    def of_slots(self, table: Tensor, slots: Tensor) -> Tensor:
        """Int64, like ``slots``: their rows in plane 0."""
        _, num_layers, _, num_kv_heads, page_size, _ = self.pool.shape
        pages = table[torch.div(slots, page_size, rounding_mode="floor")].long()
        return pages * (num_layers * 2 * num_kv_heads * page_size) + slots % page_size

    def read(self, table: Tensor, first: int, stop: int, value: bool, layer: int | None = None) -> Tensor:
        """Float32 [L, G, stop - first, head_dim], K or V of some slots; [G, ...] of one ``layer``."""
        _, num_layers, _, num_kv_heads, page_size, head_dim = self.pool.shape
        block = self.pool.view(-1, page_size * head_dim)
        first_page = first // page_size
        pages = table[first_page : -(-stop // page_size)].long() * (num_layers * 2 * num_kv_heads)
        planes = torch.div(self.planes, page_size, rounding_mode="floor").view(num_layers, num_kv_heads)
        planes = planes if layer is None else planes[layer]
        index = planes[..., None] + pages + (num_kv_heads if value else 0)
        found = block.index_select(0, index.flatten()).view(*planes.shape, -1, head_dim)
        return found[..., first - first_page * page_size : stop - first_page * page_size, :].float()

    def move(self, moves: Tensor) -> None:
        """Copy K and V of the rows ``moves[0]`` to ``moves[1]``, int64 [2, count]; all is read before any is
        written."""
        rows = self.pool.view(-1, self.pool.shape[-1])
        source, target = (moves[:, None] + self.kinds).flatten(1)
        rows.index_copy_(0, target, rows.index_select(0, source))
