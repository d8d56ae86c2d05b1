"""The three tables of a run folder, each written under a temporary name and renamed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .columns import Columns, RequestColumns, Rows
from .files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP = 65536
_TIMES_THAT_MAY_LACK = frozenset({"scheduled_s", "first_token_s", "completion_s"})


def write_table(path: Path, columns: Columns[Any]) -> None:
    """Write ``columns`` to ``path``: the schema is the same when there are no rows; times that never came are null.

    Raises
    ------
    OSError
        If the file cannot be written; nothing is left at ``path`` then but what was there before.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = columns.rows()
    arrays = {name: _array(rows, name) for name in columns.schema}
    if isinstance(columns, RequestColumns) and columns.output_ids is not None:
        arrays["output_ids"] = pa.array(columns.output_ids, pa.list_(pa.int32()))
    with replacing(path) as temporary:
        pq.write_table(pa.table(arrays), temporary, row_group_size=ROW_GROUP, compression="zstd")


def _array(rows: Rows, name: str) -> pa.Array:
    """A column, from its bytes: ``pa.array`` would load pandas."""
    import pyarrow as pa

    values = np.ascontiguousarray(rows[name])
    if values.dtype == object:
        texts = [str(value).encode() for value in values.tolist()]
        ends, content = pa.py_buffer(np.cumsum([0, *map(len, texts)], dtype=np.int32)), pa.py_buffer(b"".join(texts))
        return pa.Array.from_buffers(pa.string(), len(values), [None, ends, content])
    kind = pa.from_numpy_dtype(values.dtype)
    present = _bits(values >= 0) if name in _TIMES_THAT_MAY_LACK and (values < 0).any() else None
    content = _bits(values) if values.dtype == bool else pa.py_buffer(values)
    return pa.Array.from_buffers(kind, len(values), [present, content])


def _bits(values: NDArray[np.bool_]) -> pa.Buffer:
    import pyarrow as pa

    return pa.py_buffer(np.packbits(values, bitorder="little"))
