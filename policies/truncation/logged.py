"""What another run decided, again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...framework.policy import CacheShape, CacheView, Stage, TokenTruncation, register

if TYPE_CHECKING:
    from torch import Tensor

Left = NDArray[np.int32]


@register("truncation", "logged")
@dataclass
class Logged(TokenTruncation):
    """Lets go of the tokens that an earlier run let go of (``save_decisions=true`` writes ``decisions.parquet``).

    For the same conversations the model then computes the same logits, whatever the decisions cost to make: to look
    into one, to measure serving without it, or to carry decisions from one machine to another.

    Attributes
    ----------
    path: the file.
    positions: those of the run that wrote it.
    """

    path: str | None = None
    positions: Literal["true", "cache"] = "true"
    _left: Mapping[tuple[int, int], tuple[tuple[int, int], Left, Left]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.positions not in ("true", "cache"):
            raise ValueError(f"positions is {self.positions!r}; it must be 'true' or 'cache'")
        self._left = {} if self.path is None else _read(Path(self.path).expanduser())

    def bind(self, shape: CacheShape) -> None:
        if self.path is None:
            raise ValueError("truncation.path must be given: the decisions.parquet of another run")
        wanted = (shape.layers, shape.kv_heads)
        for found, _, _ in self._left.values():
            if found != wanted:
                raise ValueError(f"{self.path} holds decisions for {found} layers and KV heads, the model has {wanted}")

    def keep(self, view: CacheView) -> Tensor | None:
        found = self._left.get((view.conversation, view.tokens))
        if found is None:
            return None
        (layers, heads), counts, left = found
        import torch

        gone = torch.zeros(layers * heads, view.tokens, dtype=torch.bool)
        gone[np.repeat(np.arange(layers * heads), counts), left.astype(np.int64)] = True
        at = view.positions.clamp(min=0).flatten(0, 1)
        return ~gone.to(at.device).gather(-1, at).view(view.positions.shape)

    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Stage) -> float:
        """All: without conversations there is nothing to look up."""
        return cached_tokens


def _read(path: Path) -> dict[tuple[int, int], tuple[tuple[int, int], Left, Left]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
        rows = zip(
            *(columns[name] for name in ("conversation", "tokens", "layers", "heads", "counts", "left")), strict=True
        )
    except FileNotFoundError as error:
        raise ValueError(f"path is {str(path)!r}: there is no such file") from error
    except (KeyError, pa.ArrowInvalid) as error:
        raise ValueError(f"path is {str(path)!r}: not a decisions.parquet ({error})") from error
    return {
        (conversation, tokens): ((layers, heads), np.array(counts, np.int32), np.array(left, np.int32))
        for conversation, tokens, layers, heads, counts, left in rows
    }
