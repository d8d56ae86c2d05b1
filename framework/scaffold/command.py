"""``kvarena-new-policy FAMILY NAME``: the command line."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ..catalogue import read_catalogue
from ..policy import FAMILIES
from ..schema import suggest
from .kinds import KINDS
from .names import Names, check_free, check_name
from .writing import write_distribution

PROGRAM = "kvarena-new-policy"
BAD_ARGUMENTS = 2
EPILOG = """\
families
  eviction            which pages leave a full tier: a score for each run of pages
  writeback           when pages are copied down, and what is dropped
  prefetch            how missing history comes back: use, load or compute
  truncation          which tokens of a context stay: a score for each token (--context: how many of the oldest leave)
  compression         in what form they are stored
  scheduling          which requests run next, with how many tokens
  routing             which instance serves a request

examples
  kvarena-new-policy eviction my_policy
  kvarena-new-policy truncation my_window --context --out plugins/my_window

What is written works: it installs, runs and passes its own tests. kvarena --policies lists what there is.
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_ARGUMENTS, f"{PROGRAM}: {message}; see {PROGRAM} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (``sys.argv``) and return the exit status: 0, or 2 with one line of why."""
    parser = _parser()
    given = parser.parse_args(arguments)
    folder = given.out or Path(Names(given.name).distribution)
    try:
        kind = KINDS[_kind(given.family, given.context)]
        check_name(given.name)
        check_free(kind.family, given.name, read_catalogue())
        files = write_distribution(kind, given.name, folder)
    except OSError as error:
        return _refuse(f"cannot write {folder}: {error.strerror or error}")
    except ValueError as error:
        return _refuse(str(error))
    print(f"{folder}: the {kind.family} policy {given.name}, {len(files)} files. Next:\n")
    where = shlex.quote(str(folder))
    for line in (
        f"pip install -e {where}",
        f"pytest {where}",
        f"kvarena -m {kind.sweep(given.name)}",
    ):
        print(f"    {line}")
    print(f"\nThe policy is {folder / 'src' / Names(given.name).package / 'policies' / given.name}.py")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Write a distribution with a policy of your own: policy, option, tests, README.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("family", metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("name", metavar="NAME", help="of the policy, a lower-case identifier: my_policy")
    parser.add_argument("--out", metavar="DIR", type=Path, help="the folder to make (default: kvarena-NAME, here)")
    parser.add_argument("--context", action="store_true", help="of truncation: whole contexts instead of single tokens")
    return parser


def _kind(family: str, context: bool) -> str:
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}{suggest(family, FAMILIES)}")
    if context and family != "truncation":
        raise ValueError(f"--context belongs to truncation, not to {family}")
    return f"{family}-context" if context else family


def _refuse(line: str) -> int:
    print(f"{PROGRAM}: {' '.join(line.split())}", file=sys.stderr)
    return BAD_ARGUMENTS
