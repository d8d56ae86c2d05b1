"""The three tables of a run folder, each written under a temporary name and renamed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    import pyarrow as pa

    values = rows[name]
    if values.dtype == object:
        return pa.array(values, pa.string())
    return pa.array(values, mask=values < 0) if name in _TIMES_THAT_MAY_LACK else pa.array(values)
