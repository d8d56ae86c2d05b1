"""Reading published tables: whole columns, checked, with errors that name file, column and row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...schema import ConfigError
from .curves import Floats


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length read from ``path``. ``rows[i]``: the number of row i in the file, for messages."""

    path: Path
    columns: dict[str, NDArray[Any]]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def numbers(self, name: str) -> Floats:
        """Column ``name`` as floats."""
        return self.columns[name].astype(np.float64)

    def texts(self, name: str) -> list[str]:
        """Column ``name`` as text."""
        return [str(value) for value in self.columns[name]]

    def where(self, name: str, value: Any) -> Table:
        """The rows whose ``name`` equals ``value``."""
        return self.keep(self.columns[name] == value)

    def keep(self, mask: NDArray[np.bool_]) -> Table:
        """The rows where ``mask`` holds."""
        return Table(self.path, {name: column[mask] for name, column in self.columns.items()}, self.rows[mask])

    def values(self, name: str) -> list[Any]:
        """The distinct values of a column, sorted."""
        return sorted(set(self.columns[name].tolist()))


def read_parquet(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read ``columns`` of a Parquet file, and those of ``optional`` that it has.

    Raises
    ------
    ConfigError
        If the file cannot be read or lacks a column.
    """
    import pyarrow.parquet as pq

    with _readable(path):
        names = list(pq.read_schema(path).names)
        wanted = _wanted(path, names, columns, optional)
        table = pq.read_table(path, columns=wanted)
        return _table(path, table, 0)


def read_csv(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read ``columns`` of a CSV file with a header, compressed with zstd if its name ends in ``.zst``; rows count from
    2, the line after the header.

    Raises
    ------
    ConfigError
        If the file cannot be read or lacks a column.
    """
    import pyarrow as pa
    from pyarrow import csv

    with _readable(path), pa.input_stream(str(path)) as stream:
        table = csv.read_csv(stream)
        wanted = _wanted(path, table.column_names, columns, optional)
        return _table(path, table.select(wanted), 2)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from error


def _wanted(path: Path, found: Sequence[str], columns: Sequence[str], optional: Sequence[str]) -> list[str]:
    for name in columns:
        if name not in found:
            raise ConfigError(f"{path}: column {name!r} is missing; it has {', '.join(found)}")
    return [*columns, *(name for name in optional if name in found)]


def _table(path: Path, table: Any, first: int) -> Table:
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}
    if not len(table):
        raise ConfigError(f"{path}: has no rows")
    return Table(path, columns, np.arange(first, first + len(table), dtype=np.int64))


def positive(table: Table, name: str) -> None:
    """Refuse a column that holds anything but finite numbers > 0."""
    _check(table, name, lambda values: np.isfinite(values) & (values > 0), "a number > 0")


def finite(table: Table, name: str) -> None:
    """Refuse a column that holds anything but finite numbers."""
    _check(table, name, np.isfinite, "a number")


def whole(table: Table, name: str) -> None:
    """Refuse a column that holds anything but whole numbers >= 0."""
    _check(table, name, lambda values: (values >= 0) & (values == np.floor(values)), "a whole number >= 0")


def _check(table: Table, name: str, holds: Any, expected: str) -> None:
    column = table.columns[name]
    try:
        values = column.astype(np.float64)
    except (TypeError, ValueError):
        i = next(i for i, value in enumerate(column) if not isinstance(value, int | float))
        raise ConfigError(_message(table, name, i, expected)) from None
    wrong = np.nonzero(~holds(values))[0]
    if len(wrong):
        raise ConfigError(_message(table, name, int(wrong[0]), expected))


def _message(table: Table, name: str, i: int, expected: str) -> str:
    return f"{table.path}: row {table.rows[i]}, column {name!r} is {table.columns[name][i]!s}, expected {expected}"
