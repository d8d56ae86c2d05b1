"""Quality of what is served: the conversations that are drawn, and what is kept of their replies while they run.

Kept are the logits of every token that is predicted, nothing else: the run that is measured pays for one copy of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..execution.contract import Segment
from ..footprint import Held, Window
from ..metrics import RequestRecord
from ..workloads.conversation import Conversation, Workload
from .cases import Ids
from .recording import Step

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE_BYTES = 2**30  # of logits that a run keeps; the second pass takes as much once more


@dataclass(frozen=True, slots=True)
class Drawn:
    """A conversation to judge.

    Attributes
    ----------
    opening: what its context begins with.
    turns: so many of its first turns, which the run can serve and the full cache can hold.
    """

    conversation: Conversation
    opening: Ids
    turns: int

    @property
    def output_tokens(self) -> int:
        """Of these turns."""
        return sum(turn.output_tokens for turn in self.conversation.turns[: self.turns])


@dataclass(frozen=True, slots=True)
class Draw:
    """What was drawn. ``share``: that was asked for; ``too_large``: conversations that were drawn and left out, because
    their distributions are more than :data:`SAMPLE_BYTES` with those of the others."""

    share: float
    drawn: tuple[Drawn, ...]
    too_large: int

    @property
    def tokens(self) -> int:
        """To be predicted, of all that was drawn."""
        return sum(one.output_tokens for one in self.drawn)


def draw(workload: Workload, share: float, seed: int, window: Window, positions: int, token_bytes: int) -> Draw:
    """Draw ``share`` of the conversations of ``workload``, at least one; a larger share holds a smaller one's.

    Parameters
    ----------
    window: of the run; what it never serves is not drawn. What comes after the warm-up is preferred.
    positions: of the model: the full cache holds no longer context.
    token_bytes: of one token's distribution.
    """
    found = [(i, one) for i, one in enumerate(_servable(workload, window, positions)) if one.turns]
    order = {int(i): place for place, i in enumerate(np.random.default_rng([seed, 6]).permutation(len(workload)))}
    found.sort(key=lambda numbered: (numbered[0] < workload.warmup, order[numbered[0]]))
    wanted = min(len(found), max(1, round(share * len(workload))))
    kept, left = list[Drawn](), SAMPLE_BYTES // token_bytes
    for _, one in found[:wanted]:
        if one.output_tokens <= left:
            kept.append(one)
            left -= one.output_tokens
    return Draw(share, tuple(kept), wanted - len(kept))


def _servable(workload: Workload, window: Window, positions: int) -> Iterator[Drawn]:
    for conversation in workload.conversations():
        opening = workload.new_log(conversation)
        turns = _turns(conversation, len(opening), window, positions)
        yield Drawn(conversation, opening.ids(0, len(opening)), turns)


def _turns(conversation: Conversation, opening: int, window: Window, positions: int) -> int:
    """How many of the first turns fit into the ``window``, and into the full cache of as many ``positions``."""
    held, whole = Held.whole(opening), opening
    for number, turn in enumerate(conversation.turns):
        whole += turn.prompt_tokens + turn.output_tokens
        if turn.log is not None or turn.prompt_ids is None or whole > positions:
            return number
        needs = window.turn(held, turn.prompt_tokens, turn.output_tokens)
        if needs.slots > window.room or (window.max_tokens is not None and needs.positions > window.max_tokens):
            return number
        held = needs.held
    return len(conversation.turns)


@dataclass(slots=True)
class Sampler:
    """Listens to the executor that serves, and hears of the requests that arrive.

    Parameters
    ----------
    draw: whose requests are kept.
    like: logits [1, vocab_size] of the device and the dtype that are to come; room for all is made at once, in host
        memory.
    """

    draw: Draw
    like: Tensor
    records: dict[tuple[int, int], RequestRecord] = field(default_factory=dict)
    _turns: dict[int, int] = field(init=False)
    _rows: dict[int, list[int]] = field(default_factory=dict)  # of each request
    _kept: Tensor = field(init=False)
    _used: int = 0

    def __post_init__(self) -> None:
        import torch

        self._turns = {one.conversation.id: one.turns for one in self.draw.drawn}
        size, pinned = (self.draw.tokens, self.like.shape[-1]), self.like.device.type == "cuda"
        self._kept = torch.empty(size, dtype=self.like.dtype, pin_memory=pinned)
        self._kept.zero_()  # pages that the run need not wait for

    def arrived(self, record: RequestRecord) -> None:
        """A request arrived; its record is filled as it is served."""
        if record.turn < self._turns.get(record.conversation, 0):
            self.records[record.conversation, record.turn] = record
            if not record.warmup:
                self._rows[record.request] = []

    def attended(self, layer: int, segments: Sequence[Segment], query: Tensor, out: Tensor) -> None:
        """Attention is not kept."""

    def chose(self, segments: Sequence[Segment], logits: Tensor) -> None:
        """Keep the ``logits`` [sampled segments, vocab_size] of the requests that were drawn."""
        requests = [segment.request for segment in segments if segment.sample]
        rows = [i for i, request in enumerate(requests) if request in self._rows]
        rows = rows[: len(self._kept) - self._used]
        if not rows:
            return
        stop = self._used + len(rows)
        _copy_rows(logits, rows, self._kept[self._used : stop])
        for place, row in enumerate(rows, self._used):
            self._rows[requests[row]].append(place)
        self._used = stop

    def steps(self, conversation: int, turn: int) -> list[Step] | None:
        """What was predicted in a turn, token by token; None if it is not one to judge: it never came, failed, or was
        part of the warm-up."""
        record = self.records.get((conversation, turn))
        if record is None or record.status != "ok" or record.completion_s < 0 or record.warmup:
            return None
        first = record.history_tokens + record.prompt_tokens - 1
        places = self._rows[record.request]
        return [Step(first + i, self._kept[place], None, None, None) for i, place in enumerate(places)]

    def synchronize(self) -> None:
        """Wait until all is there that was kept."""
        import torch

        if self.like.device.type == "cuda":
            torch.cuda.synchronize(self.like.device)


def _copy_rows(logits: Tensor, rows: list[int], into: Tensor) -> None:
    """Copy ``rows`` of ``logits`` without a wait for a GPU; on a CPU of the same dtype without a copy in between."""
    import torch

    index = torch.tensor(rows)
    if logits.device == into.device and logits.dtype == into.dtype:
        torch.index_select(logits, 0, index, out=into)
    else:
        into.copy_(logits[index.to(logits.device, non_blocking=True)], non_blocking=True)
