"""``kvarena-report DIR...``: the tables and figures of runs that are there, written again or put together."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .comparison import Comparison, compare

NOTHING_FOUND, BAD_CONFIG = 1, 2
_WIDTH = 120  # columns of the tables where standard output is no terminal
_EPILOG = """\
A DIR is a run's folder, a sweep's, or any folder with such below it. Measured and simulated runs, other workloads,
models or hardware never share a table; runs that differ only in their seed share a row.

examples:
  kvarena-report runs/quickstart/2026-11-21_12-32-23-573560     the sweep's report again
  kvarena-report runs/quickstart/*/ --out both                  several sweeps together
  kvarena-report runs/quickstart/*/ --baseline vllm_offload     improvements over another system

written: comparison.html (open it in any browser; it needs no network), comparison.md, comparison.csv, figures/*.png
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 if no run was found, 2 for what is wrong with it."""
    given = _parser().parse_args(arguments)
    folders: list[Path] = given.folders
    if missing := [folder for folder in folders if not folder.is_dir()]:
        return _say(f"no such folder: {', '.join(map(str, missing))}")
    runs = list(dict.fromkeys(run for folder in folders for run in run_folders(folder)))
    if not runs:
        return _say(f"no run (a folder with summary.json) in {', '.join(map(str, folders))}", NOTHING_FOUND)
    out: Path = given.out or (folders[0] if len(folders) == 1 else Path("report"))
    try:
        found = compare(runs, out, "all" if given.figures == "all" else given.figures == "some", given.baseline)
    except OSError as error:
        return _say(f"cannot write {error.filename}: {error.strerror}")
    if given.baseline is not None and found.tables and not found.better:
        return _say(f"no setting has just one row {given.baseline!r} to compare with; rows: {_labels(found)}")
    try:
        if not given.quiet:
            _show(found)
        print(f"report: {os.path.relpath(out / 'comparison.html')}", flush=True)
    except BrokenPipeError:  # such as `| head`: all files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def run_folders(folder: Path) -> list[Path]:
    """The folders of runs in ``folder``, itself included, in the order of jobs; runs within runs belong to these."""
    return sorted(_found(Path(folder)), key=_natural)


def _found(folder: Path) -> Iterator[Path]:
    if (folder / "summary.json").is_file():
        yield folder
        return
    for below in folder.iterdir():
        if below.is_dir() and not below.name.startswith(".") and below.name not in ("figures", "wandb"):
            yield from _found(below)


def _natural(folder: Path) -> tuple[str, int, str]:
    return str(folder.parent), len(folder.name), folder.name


def _labels(found: Comparison) -> str:
    return ", ".join(dict.fromkeys(row.label for table in found.tables for row in table.rows))


def _show(found: Comparison) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _WIDTH).print(found)


def _say(line: str, status: int = BAD_CONFIG) -> int:
    print(f"kvarena-report: {line}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvarena-report",
        description="Compare the runs in one or more folders: tables and figures, as a page, Markdown, CSV and PNG.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="a run, a sweep, or a folder of such")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where to write (default: DIR, ./report for several)")
    parser.add_argument(
        "--baseline",
        metavar="SYSTEM",
        help="what improvements are counted from (default: vllm, else vllm_stateless, else the first row)",
    )
    parser.add_argument(
        "--figures",
        choices=("some", "all", "none"),
        default="some",
        help="figures that look into single requests: of some settings, of all, none (default: some)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print no tables")
    return parser
