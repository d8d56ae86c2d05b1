"""A front in a compression's packed form: its parts, byte by byte in the context's first pages, layer after layer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...policy import Codec, Due

ALIGNMENT = 16  # bytes; of a part in its layer


@dataclass(frozen=True, slots=True)
class Part:
    """``shape``: in one layer. ``first``: its byte in the layer."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int

    @property
    def num_bytes(self) -> int:
        """In one layer."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts are. ``layer_bytes``: of one layer; the layers follow one another."""

    parts: tuple[Part, ...]
    num_layers: int
    layer_bytes: int

    @classmethod
    def of(cls, parts: dict[str, Tensor]) -> Layout:
        """Of parts [L, ...]."""
        placed: list[Part] = []
        end = 0
        for name, tensor in parts.items():
            placed.append(Part(name, tensor.dtype, tuple(tensor.shape[1:]), end))
            end += -(-placed[-1].num_bytes // ALIGNMENT) * ALIGNMENT
        return cls(tuple(placed), next(iter(parts.values())).shape[0], end)

    def pages(self, page_bytes: int) -> int:
        """Whole pages that all layers take."""
        return -(-self.num_layers * self.layer_bytes // page_bytes)

    def write(self, pages: Tensor, table: Tensor, parts: dict[str, Tensor]) -> None:
        """Write ``parts`` into uint8 ``pages`` [num_pages, page_bytes] of ``table``."""
        count, page_bytes = self.pages(pages.shape[1]), pages.shape[1]
        whole = pages.new_zeros(count * page_bytes)
        layers = whole[: self.num_layers * self.layer_bytes].view(self.num_layers, self.layer_bytes)
        for part in self.parts:
            number = parts[part.name].contiguous().view(torch.uint8).flatten(1)
            layers[:, part.first : part.first + part.num_bytes] = number
        pages.index_copy_(0, table[:count].long(), whole.view(count, page_bytes))

    def read(self, pages: Tensor, table: Tensor, layer: int | None) -> dict[str, Tensor]:
        """The parts, [L, ...], or [...] of one ``layer``."""
        first, layers = (0, self.num_layers) if layer is None else (layer * self.layer_bytes, 1)
        stop, page_bytes = first + layers * self.layer_bytes, pages.shape[1]
        low, high = first // page_bytes, -(-stop // page_bytes)
        held = pages.index_select(0, table[low:high]).flatten()[first - low * page_bytes : stop - low * page_bytes]
        held = held.view(layers, self.layer_bytes)
        found: dict[str, Tensor] = {}
        for part in self.parts:
            number = held[:, part.first : part.first + part.num_bytes].clone(memory_format=torch.contiguous_format)
            whole = number.view(part.dtype).view(layers, *part.shape)
            found[part.name] = whole if layer is None else whole[0]
        return found


def page_bytes_of(pool: Tensor) -> Tensor:
    """The pool as uint8 [num_pages, page_bytes]: no copy."""
    return pool.view(pool.shape[0], -1).view(torch.uint8)


@dataclass(frozen=True, slots=True)
class CodecFront:
    """See ``Front``.

    Attributes
    ----------
    layout: of the packed parts; None while nothing is packed yet (no pages, no columns).
    rounded: of the tokens behind it, how many have keys and values rounded already.
    tried: of the tokens behind it, how many could be packed when that freed nothing.
    """

    codec: Codec
    pages: int
    counts: Tensor
    columns: int
    layout: Layout | None = None
    rounded: Due = field(default_factory=Due)
    tried: int = 0

    def parts(self, pool: Tensor, table: Tensor, layer: int | None = None) -> dict[str, Tensor]:
        """The packed parts, [L, ...], or [...] of one ``layer``."""
        assert self.layout is not None
        return self.layout.read(page_bytes_of(pool), table, layer)

    def keys(self, pool: Tensor, table: Tensor, layer: int | None = None) -> Tensor:
        """See ``Front``."""
        if self.layout is None:
            return self._nothing(pool, layer)
        return self.codec.keys(self.parts(pool, table, layer)).float()

    def values(self, pool: Tensor, table: Tensor, layer: int | None = None) -> Tensor:
        """See ``Front``."""
        if self.layout is None:
            return self._nothing(pool, layer)
        return self.codec.values(self.parts(pool, table, layer)).float()

    def both(self, pool: Tensor, table: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, float32 [G, columns, head_dim]."""
        if self.layout is None:
            return self._nothing(pool, layer), self._nothing(pool, layer)
        parts = self.parts(pool, table, layer)
        return self.codec.keys(parts).float(), self.codec.values(parts).float()

    def _nothing(self, pool: Tensor, layer: int | None) -> Tensor:
        _, num_layers, _, num_kv_heads, _, head_dim = pool.shape
        planes = (num_layers, num_kv_heads) if layer is None else (num_kv_heads,)
        return pool.new_empty((*planes, 0, head_dim), dtype=torch.float32)
