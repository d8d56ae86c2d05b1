"""What someone who measures hears of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .contract import Segment


class Listener(Protocol):
    """Hears of every batch of a ``TorchExecutor`` whose ``listener`` it is. Changes nothing: the tensors are the pass's
    own, valid during the call only."""

    def attended(self, layer: int, segments: Sequence[Segment], query: Tensor, out: Tensor) -> None:
        """After the attention of each layer.

        Parameters
        ----------
        segments: of the batch; their tokens are the rows of the tensors, one segment after another.
        query, out: [num_tokens, num_heads, head_dim], the queries as attention takes them (rotated), and what it gave.
        """
        ...

    def chose(self, segments: Sequence[Segment], logits: Tensor) -> None:
        """After the forward pass, before tokens leave any context.

        ``logits``: [num_sampled, vocab_size], after the last token of each sampled segment, in batch order.
        """
        ...
