"""The flags of the command line: those that Hydra has, and ours before them."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from ..schema import ConfigError, suggest


def in_order(words: list[str]) -> list[str]:
    """``-m`` first, so that ``system=a,b -m seed=1`` works too."""
    return sorted(words, key=lambda word: word not in ("-m", "--multirun"))


def check_flags(words: Iterable[str], own: Iterable[str]) -> None:
    """Refuse a flag that does not exist, naming the nearest, and one without what it needs.

    Raises
    ------
    ConfigError
        One line.
    """
    parser = get_args_parser()
    known = [*own, *parser._option_string_actions]
    given = list(words)
    for word in given:
        name = word.split("=")[0]
        if word.startswith("--") and name not in known:
            raise ConfigError(f"unknown flag {name!r}{suggest(name, known)}; see kvarena --help")
        if word.startswith("-") and not word.startswith("--") and word not in known and not _with_value(parser, word):
            raise ConfigError(f"unknown flag {word!r}; see kvarena --help")
    parser.error = _refuse  # type: ignore[method-assign]
    parser.parse_args(given)


def _with_value(parser: ArgumentParser, word: str) -> bool:
    """It is a short flag and its value in one word, such as ``-cjob``."""
    action = parser._option_string_actions.get(word[:2])
    return action is not None and action.nargs != 0 and len(word) > 2


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message.replace('argument ', '')}; see kvarena --help")
