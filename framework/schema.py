"""A dataclass is the schema of its YAML: build one from plain knobs, or say in one line what is wrong with them."""

from __future__ import annotations

import difflib
import types
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot run. The message is one line for the user: what was found, what was expected."""


def suggest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest spelling of ``word`` among ``known``, or nothing if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def build(cls: type[T], knobs: Mapping[str, Any], where: str) -> T:
    """Build the dataclass ``cls`` from ``knobs``; ``where`` begins every message (``"eviction=lru"``).

    An ``int`` is taken where a ``float`` is expected, and a whole float (``1e6``) where an ``int`` is. A truth value
    is taken where a Literal has the word for it (``"true"``). A field that is itself a dataclass takes a mapping. A
    field that is left out takes its default.

    Raises
    ------
    ConfigError
        For an unknown knob (the known ones and the nearest are named), a missing one, a value of the wrong type, or a
        value that the dataclass itself refuses with ValueError or TypeError.
    """
    schema: dict[str, Field[Any]] = {f.name: f for f in fields(cls) if f.init} if is_dataclass(cls) else {}
    for name in knobs:
        if name not in schema:
            known = f"it has {', '.join(schema)}" if schema else "it has no knobs"
            raise ConfigError(f"{where}: unknown knob {name!r}; {known}{suggest(str(name), schema)}")
    missing = [name for name, f in schema.items() if name not in knobs and _required(f)]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} must be given")
    hints = get_type_hints(cls)
    values = {name: _convert(value, hints[name], f"{where}: {name}") for name, value in knobs.items()}
    try:
        return cls(**values)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _required(f: Field[Any]) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _describe(expected: Any) -> str:
    """How a type is called in a message."""
    origin, args = get_origin(expected), get_args(expected)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _describe(a) for a in args)
    if origin is not None:
        return f"{origin.__name__} of {_describe(args[-1] if args[-1] is not ... else args[0])}"
    return "a mapping" if is_dataclass(expected) else getattr(expected, "__name__", str(expected))


def _convert(value: Any, expected: Any, where: str) -> Any:
    """``value`` as ``expected``, or a ConfigError that begins with ``where``."""
    origin, args = get_origin(expected), get_args(expected)
    if expected is Any:
        return value
    if origin in (Union, types.UnionType):
        return _first_fitting(value, args, expected, where)
    if origin is Literal:
        if isinstance(value, bool) and (word := str(value).lower()) in args:
            return word  # YAML reads the word true as a truth value
        if any(value == a and type(value) is type(a) for a in args):
            return value
        near = suggest(value, [a for a in args if isinstance(a, str)]) if isinstance(value, str) else ""
        raise ConfigError(f"{where} is {value!r}, expected {_describe(expected)}{near}")
    if is_dataclass(expected) and isinstance(value, Mapping):
        return build(expected, value, where)  # type: ignore[arg-type]
    if (
        origin in (list, tuple, set, frozenset)
        and isinstance(value, Collection)
        and not isinstance(value, str | Mapping)
    ):
        return origin(_convert(v, _item(args, i), f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {k: _convert(v, args[1], f"{where}.{k}") for k, v in value.items()}
    return _scalar(value, origin or expected, expected, where)


def _item(args: tuple[Any, ...], index: int) -> Any:
    return args[0] if len(args) == 1 or args[-1] is ... else args[min(index, len(args) - 1)]


def _scalar(value: Any, kind: Any, expected: Any, where: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        return float(value)
    if kind is int and is_number and float(value).is_integer():
        return int(value)
    if kind in (int, float) or not isinstance(kind, type) or not isinstance(value, kind):
        found = "null" if value is None else f"{value!r} ({type(value).__name__})"
        raise ConfigError(f"{where} is {found}, expected {_describe(expected)}")
    return value


def _first_fitting(value: Any, options: tuple[Any, ...], expected: Any, where: str) -> Any:
    """Try an exact type first, so that ``int | float`` keeps an int an int."""
    exact = [o for o in options if type(value) is o]
    for option in exact + [o for o in options if o not in exact]:
        try:
            return _convert(value, option, where)
        except ConfigError:
            if is_dataclass(option) and isinstance(value, Mapping):
                raise
    found = f"{value!r} ({type(value).__name__})"
    near = [a for o in options if get_origin(o) is Literal for a in get_args(o) if isinstance(a, str)]
    hint = suggest(value, near) if isinstance(value, str) else ""
    raise ConfigError(f"{where} is {found}, expected {_describe(expected)}{hint}")
