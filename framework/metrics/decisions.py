"""What a token-level policy let go of, step by step, so that it can be done again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..policy import CacheShape, CacheView, Needs, Stage, TokenTruncation
from .files import replacing

if TYPE_CHECKING:
    from torch import Tensor

DECISIONS = "decisions.parquet"


class DecisionLog(TokenTruncation):
    """Decides as ``policy`` does, and remembers which tokens left.

    :meth:`write` leaves a row for each decision by which any did: ``conversation``, ``tokens`` (of the context then),
    ``stage``, ``layers``, ``heads`` (KV heads), and for all planes, layer by layer, ``counts`` [layers * heads] and
    ``left``: positions in the context, ascending, plane after plane.
    """

    def __init__(self, policy: TokenTruncation) -> None:
        self.policy = policy
        self.positions = policy.positions
        self._keys: list[tuple[int, int, str, int, int]] = []
        self._counts: list[NDArray[np.int32]] = []
        self._left: list[NDArray[np.int32]] = []

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    def bind(self, shape: CacheShape) -> None:
        self.policy.bind(shape)

    def observe(self, view: CacheView) -> None:
        self.policy.observe(view)

    def keep(self, view: CacheView) -> Tensor | None:
        keep = self.policy.keep(view)
        if keep is not None:
            self._note(view, keep)
        return keep

    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Stage) -> float:
        return self.policy.kept_tokens(cached_tokens, tokens, stage)

    def _note(self, view: CacheView, keep: Tensor) -> None:
        positions = view.positions.cpu().numpy()
        leaves = ~keep.cpu().numpy() & (positions >= 0)
        if not leaves.any():
            return
        layers, heads, _ = positions.shape
        counts = leaves.sum(axis=-1, dtype=np.int32).ravel()
        left = positions[leaves].astype(np.int32)
        plane = np.repeat(np.arange(counts.size), counts)
        self._keys.append((view.conversation, view.tokens, view.stage, layers, heads))
        self._counts.append(counts)
        self._left.append(left[np.lexsort((left, plane))])

    def write(self, path: Path) -> None:
        """Write the log as Parquet.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = ("conversation", "tokens", "stage", "layers", "heads")
        kinds = (pa.int64(), pa.int64(), pa.string(), pa.int32(), pa.int32())
        columns = list(zip(*self._keys, strict=True)) or [()] * len(names)
        table = {name: pa.array(column, kind) for name, column, kind in zip(names, columns, kinds, strict=True)}
        table["counts"] = pa.array(self._counts, pa.list_(pa.int32()))
        table["left"] = pa.array(self._left, pa.list_(pa.int32()))
        with replacing(path) as temporary:
            pq.write_table(pa.table(table), temporary, compression="zstd")
