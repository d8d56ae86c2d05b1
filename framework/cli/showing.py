"""The comparison at the end of a run or sweep: files into its folder, a table to the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..paths import read_summary

FILE_WIDTH = 120  # columns of the table where standard output is no terminal


def report(folders: Sequence[Path], out: Path) -> None:
    """Compare the runs in ``folders``: write the files into ``out`` and print the table."""
    from rich.console import Console

    from ..report import compare

    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    console.print(compare(folders, out))
    told = [line for folder in folders for line in _told(read_summary(folder))]
    for line in dict.fromkeys(told):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"results: {os.path.relpath(out)}", soft_wrap=True, highlight=False)


def _told(summary: dict[str, Any]) -> Iterator[str]:
    """What no table says of a run."""
    if line := _times_line(summary):
        yield line
    run = summary.get("run", {})
    for part in (run, *summary.get("quality", {}).get("points", ())):
        if pairs := part.get("layer_map"):
            shared = ",".join(f"{layer}:{source}" for layer, source in pairs.items())
            yield f"{run.get('system')}: layers that use an earlier one's K/V: compression.layer_map={{{shared}}}"


def _times_line(summary: dict[str, Any]) -> str:
    """Where the times of a run with measured tables came from."""
    run = summary.get("run", {})
    if not isinstance(times := run.get("times_from"), dict):
        return ""
    return (
        f"{run.get('system')}, simulated time: {times['measured']:.1%} interpolated between measured points,"
        f" {times['extrapolated']:.1%} scaled from the nearest of them, {times['roofline']:.1%} from the roofline alone"
        f" ({times['tables']})"
    )
