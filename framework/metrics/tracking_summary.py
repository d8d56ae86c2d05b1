"""A nested ``summary.json`` as a tracker takes it: flat names for figures, tables for what is listed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PERCENTILES = ("count", "mean", "p50", "p90", "p95", "p99", "max")
MOST_ROWS = 1000


@dataclass(frozen=True, slots=True)
class SummaryTable:
    """``rows`` of as many values as there are ``columns``; at most ``MOST_ROWS``."""

    name: str
    columns: list[str]
    rows: list[list[Any]]


def flat(summary: Mapping[str, Any]) -> dict[str, Any]:
    """``a/b/c`` by value; without lists and nulls."""
    return {name: value for name, value in _leaves("", summary) if value is not None}


def tables(summary: Mapping[str, Any]) -> Iterator[SummaryTable]:
    """All distributions as one table, ``percentiles``, and each list of sections, such as ``latency/by_turn``."""
    found = [(name, value) for name, value in _leaves("", summary, whole=True) if isinstance(value, Mapping)]
    rows: list[list[Any]] = [[name, *(value.get(column) for column in PERCENTILES)] for name, value in found]
    yield SummaryTable("percentiles", ["metric", *PERCENTILES], rows[:MOST_ROWS])
    for name, sections in _lists("", summary):
        lines = [flat(section) for section in sections[:MOST_ROWS]]
        if columns := list(dict.fromkeys(column for line in lines for column in line)):
            yield SummaryTable(name, columns, [[line.get(column) for column in columns] for line in lines])


def _leaves(prefix: str, value: Any, whole: bool = False) -> Iterator[tuple[str, Any]]:
    """Names and values of a nested mapping, lists left out; ``whole`` keeps a distribution in one piece."""
    if isinstance(value, Mapping) and not (whole and "p50" in value):
        for key, inner in value.items():
            yield from _leaves(_name(prefix, key), inner, whole)
    elif not isinstance(value, list | tuple):
        yield prefix, value


def _lists(prefix: str, value: Any) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _lists(_name(prefix, key), inner)
    elif isinstance(value, list) and value and all(isinstance(inner, Mapping) for inner in value):
        yield prefix, value


def _name(prefix: str, key: object) -> str:
    return f"{prefix}/{key}" if prefix else str(key)
