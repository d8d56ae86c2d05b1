"""Data files: JSON arrays and JSON lines, and what a file's author did wrong in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ..schema import ConfigError, suggest


class Row:
    """A JSON object and where it stands. Getters raise ConfigError with file, line, what was found and expected."""

    __slots__ = ("values", "where")

    def __init__(self, where: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: found {shown(values)}, expected an object {{...}}")
        self.where, self.values = where, values

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def wrong(self, key: str, expected: str) -> ConfigError:
        """The error that ``key`` is not as ``expected``."""
        if key not in self.values:
            return ConfigError(f"{self.where}: {key!r} is missing, expected {expected}")
        return ConfigError(f"{self.where}: {key!r} is {shown(self.values[key])}, expected {expected}")

    def whole(self, key: str, minimum: int) -> int:
        """An integer >= ``minimum``."""
        value = self.values.get(key)
        if type(value) is not int or not minimum <= value < 2**31:
            raise self.wrong(key, f"a whole number >= {minimum}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number >= 0, or ``default`` where the key is missing."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
            raise self.wrong(key, "a number >= 0")
        return float(value)

    def text(self, key: str) -> str:
        """A string."""
        value = self.values.get(key)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def rows(self, key: str) -> list[Row]:
        """A list of objects."""
        value = self.values.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, "a list of objects")
        return [Row(f"{self.where}: {key}[{i}]", v) for i, v in enumerate(value)]

    def whole_list(self, key: str, stop: int) -> list[int]:
        """A list of integers, 0 <= each < ``stop``."""
        value = self.values.get(key)
        if isinstance(value, list) and set(map(type, value)) <= {int}:
            if not value or 0 <= min(value) <= max(value) < stop:
                return value
            bad = next(v for v in value if not 0 <= v < stop)
            raise ConfigError(f"{self.where}: {key!r} holds {bad}, expected whole numbers 0..{stop - 1}")
        raise self.wrong(key, "a list of whole numbers")

    def only(self, known: Collection[str]) -> None:
        """Refuse keys that are not ``known``."""
        for key in self.values:
            if key not in known:
                raise ConfigError(
                    f"{self.where}: unknown key {key!r}, expected one of {', '.join(known)}{suggest(key, known)}"
                )


def shown(value: Any) -> str:
    """``value`` as JSON, cut to what fits into a message."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def read_text(path: Path) -> str:
    """The file's text.

    Raises
    ------
    ConfigError
        If the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8, expected a text file of JSON") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error


def read_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSON array or of JSON lines, in order; each knows its line.

    Raises
    ------
    ConfigError
        For a file that cannot be read, holds nothing, or holds something that is not an object.
    """
    text = read_text(path)
    start = len(text) - len(text.lstrip())
    if start == len(text):
        raise ConfigError(f"{path}: the file is empty, expected JSON objects")
    yield from _read_array(path, text, start + 1) if text[start] == "[" else _read_lines(path, text)


def _read_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as error:
                raise _not_json(f"{path}:{number}", line.strip(), error) from error
            yield Row(f"{path}:{number}", value)


def _read_array(path: Path, text: str, at: int) -> Iterator[Row]:
    decoder, line, counted, first = json.JSONDecoder(), 1, 0, True
    while True:
        at = _skip_space(text, at)
        line, counted = line + text.count("\n", counted, at), at
        where = f"{path}:{line}"
        if text[at : at + 1] == "]" and text[at + 1 :].strip() == "":
            return
        if not first:
            if text[at : at + 1] != ",":
                found = shown(text[at : at + 30]) if at < len(text) else "the end of the file"
                raise ConfigError(f"{where}: found {found}, expected ',' or ']'")
            at = _skip_space(text, at + 1)
            line, counted = line + text.count("\n", counted, at), at
            where = f"{path}:{line}"
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError as error:
            raise _not_json(where, text[at : at + 60].strip(), error) from error
        first = False
        yield Row(where, value)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _not_json(where: str, found: str, error: ValueError) -> ConfigError:
    reason = getattr(error, "msg", str(error)).lower()
    return ConfigError(f"{where}: found {shown(found)}, expected a JSON object ({reason})")
