"""Page selection at work (Quest): each decoding query attends to chosen pages of its context; nothing leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ....kernels.page_bounds import page_bounds
from ....kernels.paged_attention import paged_attention
from ...policy import Selection
from .contexts import ContextMemory
from .forms import Attending, FormedSegment, LayerCall
from .frozen import plane_rows

REMEMBERED_PASSES = 64  # a request that did not decode for so many passes is computed again


@dataclass(slots=True)
class Bounds:
    """Least and largest key channels of the pages of one request, layer by layer.

    Attributes
    ----------
    table: the pages that they are of. seen: the last pass in which the request decoded.
    tokens: by layer, how many were there. low, high: by layer, float32 [pages, G, head_dim].
    """

    table: Tensor
    seen: int = 0
    tokens: dict[int, int] = field(default_factory=dict)
    low: dict[int, Tensor] = field(default_factory=dict)
    high: dict[int, Tensor] = field(default_factory=dict)

    def of(self, layer: int, pages: Tensor, table: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """Bounds of ``layer`` with ``tokens`` in ``table``; of what was full before nothing is read again.

        ``pages``: the pool's of this layer.
        """
        whole = min(self.tokens.get(layer, 0), tokens - 1) // pages.shape[3]
        low, high = page_bounds(pages, table[whole:], tokens - whole * pages.shape[3])
        if whole:
            low, high = torch.cat((self.low[layer][:whole], low)), torch.cat((self.high[layer][:whole], high))
        self.tokens[layer], self.low[layer], self.high[layer] = tokens, low, high
        return low, high


class SelectingForm:
    """See ``Form``. Remembers the bounds of pages by request: the tokens of a request never change, so that its pages
    say the same as long as their numbers do; when it is admitted again to other pages, they are computed anew."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._bounds: dict[int, Bounds] = {}
        self._passes = 0

    def claims(self, memory: ContextMemory | None, start: int, length: int) -> bool:
        """Single queries of ordinary contexts with a history."""
        return memory is None and length == 1 and start > 0

    def begin(self, pool: Tensor, segments: Sequence[FormedSegment]) -> Attending:
        """See ``Form``."""
        self._passes += 1
        self._bounds = {r: b for r, b in self._bounds.items() if self._passes - b.seen <= REMEMBERED_PASSES}
        return SelectingAttending(self._selection, pool, segments, [self._known(segment) for segment in segments])

    def _known(self, segment: FormedSegment) -> Bounds:
        known = self._bounds.get(segment.request)
        if segment.request < 0 or known is None or not _extends(segment.table, known.table):
            known = Bounds(segment.table)
        known.table, known.seen = segment.table.clone(), self._passes
        if segment.request >= 0:
            self._bounds[segment.request] = known
        return known


def _extends(table: Tensor, earlier: Tensor) -> bool:
    return len(table) >= len(earlier) and torch.equal(table[: len(earlier)], earlier)


class SelectingAttending:
    """One pass. Every query head of a context is a segment of its own, with the pages that it chose."""

    reads_all_layers = False

    def __init__(
        self, selection: Selection, pool: Tensor, segments: Sequence[FormedSegment], bounds: list[Bounds]
    ) -> None:
        self._selection, self._pool, self._segments, self._bounds = selection, pool, segments, bounds
        self._rows = torch.tensor([s.rows.start for s in segments], dtype=torch.int64, device=pool.device)
        self._planes = plane_rows(pool)

    def attend(self, call: LayerCall) -> Tensor:
        """See ``Attending``. Layers with a window are attended whole.

        Raises
        ------
        ValueError
            If keys are cached without rotation: bounds of such keys do not bound anything.
        """
        if call.key_cos is not None:
            raise ValueError("page selection needs rotated keys: expected backend.decoupled=false")
        query = call.query.index_select(0, self._rows)
        chosen = [self._choose(call, query[i], i) for i in range(len(self._segments))]
        whole = [i for i, pages in enumerate(chosen) if pages is None]
        if len(whole) == len(chosen):
            return self._whole(call, query, whole)
        out = torch.empty_like(query)
        if whole:
            out[whole] = self._whole(call, query[whole], whole)
        picked = {i: pages for i, pages in enumerate(chosen) if pages is not None}
        out[list(picked)] = self._picked(call, query[list(picked)], picked)
        return out

    def _choose(self, call: LayerCall, query: Tensor, i: int) -> Chosen | None:
        """None: all pages."""
        segment = self._segments[i]
        if call.window is not None:
            return None
        low, high = self._bounds[i].of(call.layer, self._pool[:, call.layer], segment.table, segment.start + 1)
        page_size = self._pool.shape[4]
        pages = self._selection.pages(call.layer, query.float(), low, high, segment.start + 1, page_size)
        if pages is None:
            return None
        return Chosen.of(pages, query.shape[0], len(segment.table), self._selection.name)

    def _whole(self, call: LayerCall, query: Tensor, which: list[int]) -> Tensor:
        """Plain attention, bit for bit."""
        device = query.device
        tables = [self._segments[i].table for i in which]
        attended: Tensor = paged_attention(
            query,
            self._pool[:, call.layer],
            torch.nn.utils.rnn.pad_sequence(tables, batch_first=True),
            torch.arange(len(which) + 1, dtype=torch.int32, device=device),
            torch.tensor([self._segments[i].start for i in which], dtype=torch.int32, device=device),
            scale=call.scale,
            window=call.window,
            softcap=call.softcap,
        )
        return attended

    def _picked(self, call: LayerCall, query: Tensor, picked: dict[int, Chosen]) -> Tensor:
        _, num_layers, _, num_kv_heads, page_size, head_dim = self._pool.shape
        head = torch.arange(query.shape[1], device=query.device)
        head = torch.div(head * num_kv_heads, query.shape[1], rounding_mode="floor")
        tables, positions = [], []
        for i, chosen in picked.items():
            segment = self._segments[i]
            page = segment.table.long()[chosen.pages]  # [H, width]
            tables += list((page * num_layers + call.layer) * 2 * num_kv_heads + head[:, None])
            positions.append((chosen.counts - 1) * page_size + segment.start % page_size)
        attended = paged_attention(
            query.reshape(-1, 1, head_dim),
            self._planes,
            torch.nn.utils.rnn.pad_sequence(tables, batch_first=True).to(torch.int32),
            torch.arange(len(tables) + 1, dtype=torch.int32, device=query.device),
            torch.cat(positions).to(torch.int32),
            scale=call.scale,
            softcap=call.softcap,
        )
        return attended.view_as(query)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Pages of one query: int64 ``pages`` [H, width], of which the first ``counts`` [H] count, the last page last."""

    pages: Tensor
    counts: Tensor

    @classmethod
    def of(cls, pages: Tensor, num_heads: int, count: int, name: str) -> Chosen:
        """``pages`` as a policy gives them, of a context of ``count`` pages.

        Raises
        ------
        ValueError
            If they are no int64 [num_heads, selected], ascending, each in 0 .. ``count`` - 1.
        """
        if pages.dtype != torch.int64 or pages.dim() != 2 or pages.shape[0] != num_heads:
            raise ValueError(
                f"truncation {name!r} selects {pages.dtype} {list(pages.shape)}, expected torch.int64 "
                f"[{num_heads}, any]"
            )
        edges = torch.nn.functional.pad(pages, (1, 0), value=-1)
        last = torch.nn.functional.pad(pages, (0, 1), value=count)
        if not bool((edges < last).all()):
            raise ValueError(f"truncation {name!r} selects pages that are not ascending or not in 0..{count - 1}")
        end = pages.new_full((num_heads, 1), count - 1)
        without = (edges[:, -1] != count - 1).long()
        return cls(torch.cat((pages, end), dim=1), pages.shape[1] + without)
