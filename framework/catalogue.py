"""``kvarena --policies [FAMILY]``: every policy there is, in one line, with its paper and where it comes from.

Modules and classes describe themselves; nothing is written twice. The line is the first of the policy's module, or of
its class where a module holds several; papers are those that the class's docstring names as ``Author et al., "Title",
VENUE 2026``.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NoReturn

from . import policy as contracts
from .options import package_folders
from .paths import CONF_GROUP, conf_plugins
from .policy import FAMILIES, Policy
from .registry import GROUP, Found, Registry, policies_of
from .schema import ConfigError, suggest

BROKEN = 2
CHOSEN = re.compile(r"^name:\s*['\"]?(\w+)", re.MULTILINE)  # the policy that an option is of
NAME = r"[A-Z][\w'-]+"
PAPER = re.compile(
    rf"(?:{NAME} et al\.|{NAME}(?:, {NAME})* and {NAME}|{NAME}), "  # Yu et al., | Megiddo and Modha, | Cherkasova,
    r'(?:"[^"]+"(?: \([^)]*\))?, )?'  # "Title" (Name),
    r"(?:arXiv \d{4}\.\d{5}|(?:[A-Z][\w .()]*,? )?(?:19|20)\d\d)\b"  # SOSP 2023 | IEEE Computer 27(3), 1994 | 2024
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A policy: ``summary``, one line; ``papers`` it names; ``options`` of its family that choose it; its origin."""

    family: str
    name: str
    summary: str
    papers: tuple[str, ...]
    options: tuple[str, ...]
    oracle: bool
    lossless: bool
    distribution: str
    version: str
    module: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All policies, by family and name; ``problems``: what is broken or registered twice, a line each."""

    entries: tuple[Entry, ...]
    problems: tuple[str, ...]

    def of(self, family: str) -> list[Entry]:
        """Those of ``family``."""
        return [entry for entry in self.entries if entry.family == family]


def read_catalogue(
    policies: Iterable[EntryPoint] | None = None, configs: Iterable[EntryPoint] | None = None
) -> Catalogue:
    """What the installed distributions ship. A broken one is a problem and hides no other.

    ``policies``, ``configs``: the entry points; None: those that are installed.
    """
    found, problems = list[Found](), list[str]()
    for point in entry_points(group=GROUP) if policies is None else policies:
        try:
            found += policies_of(point)
        except ConfigError as error:
            problems.append(str(error))
    options, bad = _options(entry_points(group=CONF_GROUP) if configs is None else configs)
    try:
        Registry(found)
    except ConfigError as error:
        problems.append(str(error))
    ordered = sorted(found, key=lambda f: (FAMILIES.index(f.policy.family), f.policy.name))
    modules = Counter(one.policy.__module__ for one in found)
    entries = [_entry(one, options, alone=modules[one.policy.__module__] == 1) for one in ordered]
    return Catalogue(tuple(entries), (*problems, *bad))


def _entry(found: Found, options: dict[tuple[str, str], list[str]], alone: bool) -> Entry:
    policy = found.policy
    described = sys.modules[policy.__module__] if alone else policy
    summary = (inspect.getdoc(described) or inspect.getdoc(policy) or "").strip().split("\n")[0]
    named = tuple(options.get((policy.family, policy.name), ()))
    where = (found.distribution, found.version, policy.__module__)
    return Entry(policy.family, policy.name, summary, papers_of(policy), named, policy.oracle, policy.lossless, *where)


def papers_of(policy: type[Policy]) -> tuple[str, ...]:
    """The papers that the docstring of ``policy`` names, in order."""
    text = " ".join((policy.__doc__ or "").split())
    return tuple(dict.fromkeys(match.group() for match in PAPER.finditer(text)))


def _options(points: Iterable[EntryPoint]) -> tuple[dict[tuple[str, str], list[str]], list[str]]:
    """The options by family and policy, and what is wrong with the config packages."""
    found: dict[tuple[str, str], list[str]] = {}
    points, problems = list(points), list[str]()
    try:
        conf_plugins(points)
    except ConfigError as error:
        problems.append(str(error))
    for root in (root for point in points for root in package_folders(point.value)):
        for path in (path for family in FAMILIES for path in sorted((root / family).glob("*.yaml"))):
            if chosen := CHOSEN.search(path.read_text(encoding="utf-8")):
                found.setdefault((path.parent.name, chosen[1]), []).append(path.stem)
    return found, problems


# --- the command -------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BROKEN, f"kvarena: --policies: {message}; see kvarena --policies --help\n")


def main(arguments: Sequence[str]) -> int:
    """Print the catalogue; 0, or 2 if the arguments are bad or a distribution is broken (the others are listed)."""
    given = _parser().parse_args(arguments)
    if given.family not in (None, *FAMILIES):
        known = f"known: {', '.join(FAMILIES)}{suggest(given.family, FAMILIES)}"
        print(f"kvarena: unknown policy family {given.family!r}; {known}", file=sys.stderr)
        return BROKEN
    catalogue = read_catalogue()
    families = [family for family in FAMILIES if given.family in (None, family)]
    if given.json:
        policies = [asdict(entry) for family in families for entry in catalogue.of(family)]
        print(json.dumps({"policies": policies, "problems": catalogue.problems}, indent=2, ensure_ascii=False))
    elif given.markdown:
        print("\n\n".join(markdown(catalogue.of(family)) for family in families))
    else:
        _show(catalogue, families)
    for problem in catalogue.problems:
        print(f"kvarena: {problem}", file=sys.stderr)
    return BROKEN if catalogue.problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kvarena --policies", description="List the policies of every family, or of one.")
    parser.add_argument("family", metavar="FAMILY", nargs="?", help=", ".join(FAMILIES))
    parser.add_argument("--json", action="store_true", help="for programs: every field, and what is broken")
    parser.add_argument("--markdown", action="store_true", help="a table for a README")
    parser.add_argument("--policies", action="store_true", help=argparse.SUPPRESS)
    return parser


def _show(catalogue: Catalogue, families: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for family in families:
        table = Table(title=f"{family}: {question(family)}", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column, ratio in (("option", 20), ("what", 50), ("paper", 46), ("from", 14)):
            table.add_column(column, ratio=ratio, overflow="fold")
        for entry in catalogue.of(family):
            table.add_row(*_row(entry))
        console.print(table)
        console.print()


def _row(entry: Entry) -> tuple[str, str, str, str]:
    """Cells without markup of rich's in them."""
    from rich.markup import escape

    marks = [mark for mark, holds in (("oracle", entry.oracle), ("lossy", not entry.lossless)) if holds]
    what = entry.summary + (f" ({', '.join(marks)})" if marks else "")
    cells = (_chosen(entry, "\n"), what, "; ".join(entry.papers), f"{entry.distribution} {entry.version}")
    return tuple(escape(cell) for cell in cells)  # type: ignore[return-value]


def _chosen(entry: Entry, between: str) -> str:
    """The options that choose the policy, its own name first."""
    rest = [option for option in entry.options if option != entry.name]
    own = entry.name if entry.name in entry.options else f"{entry.name} (no YAML)"
    return between.join([own, *rest])


def question(family: str) -> str:
    """What the policies of ``family`` decide: the first sentence of its contract."""
    contract: Any = next(
        c for c in vars(contracts).values() if isinstance(c, type) and c.__dict__.get("family") == family
    )
    text = " ".join((contract.__doc__ or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.:]) ", text)[0].rstrip(".:")
    return sentence[0].lower() + sentence[1:]


def markdown(entries: Sequence[Entry]) -> str:
    """A table of ``entries``, as the README of a family's folder has it."""
    lines = ["| option | what | paper |", "|---|---|---|"]
    for entry in entries:
        chosen = ", ".join(f"`{option}`" for option in _chosen(entry, "\n").split("\n"))
        marks = [f" *{mark}*" for mark, holds in (("Oracle.", entry.oracle), ("Lossy.", not entry.lossless)) if holds]
        lines.append(f"| {chosen} | {entry.summary}{''.join(marks)} | {'; '.join(entry.papers)} |")
    return "\n".join(lines)
