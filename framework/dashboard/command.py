"""``kvarena-dashboard``: a workspace and a report for Weights & Biases, saved there or written down."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..metrics.files import replace_text
from ..paths import read_summary
from .sections import SECTIONS, SectionSpec

FAILED, BAD_CONFIG = 1, 2
PROJECT, FILE = "kvarena", "dashboard.json"
_EPILOG = """\
A DIR is a sweep's folder, a run's, or any folder with such below it: the dashboard then shows its sweeps, and the
sections for which they have figures. A PROJECT, or nothing, is all of a W&B project.

With WANDB_API_KEY set (or --save, after `wandb login`) workspace and report are saved in the project, which must have
runs. Without, they are written to dashboard.json, and nothing is sent.

examples:
  kvarena-dashboard runs/quickstart/2026-11-21_12-32-23-573560
  wandb sync runs/quickstart/2026-11-21_12-32-23-573560/*/wandb/offline-run-*    first: the runs themselves
  WANDB_API_KEY=... kvarena-dashboard runs/quickstart/2026-11-21_12-32-23-573560 --entity my-team
"""


@dataclass(frozen=True, slots=True)
class _Found:
    """What the runs of a folder need: ``sweeps`` by name, ``sections`` of their summaries, offline runs."""

    sweeps: tuple[str, ...]
    summaries: frozenset[str]
    offline: tuple[Path, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 if W&B refused, 2 for what is wrong with it."""
    given = _parser().parse_args(arguments)
    folder = Path(given.target) if given.target and Path(given.target).is_dir() else None
    if folder is None and given.target and ("/" in given.target or given.project):
        return _say(f"no such folder: {given.target}")
    if importlib.util.find_spec("wandb_workspaces") is None:
        return _say("wandb-workspaces is not installed: pip install 'kvarena[dashboard]'")
    found = None if folder is None else _look(folder)
    if found is not None and not found.summaries:
        return _say(f"no run (a folder with summary.json) in {folder}", FAILED)
    project = given.project or (given.target if folder is None and given.target else PROJECT)
    saves = given.save or bool(os.environ.get("WANDB_API_KEY"))
    try:
        return (_save if saves else _write)(given, project, found, folder)
    except OSError as error:
        return _say(f"cannot write {error.filename}: {error.strerror}", FAILED)


def _build(entity: str, project: str, found: _Found | None) -> tuple[Any, Any]:
    from .wandb_objects import report, workspace

    sections = chosen(None if found is None else found.summaries)
    sweeps = () if found is None else found.sweeps
    return workspace(entity, project, sections, sweeps), report(entity, project, sections, sweeps)


def chosen(summaries: frozenset[str] | None) -> list[SectionSpec]:
    """The sections for which there are figures; all of them if nobody knows."""
    return [spec for spec in SECTIONS if summaries is None or spec.needs in summaries]


def _save(given: argparse.Namespace, project: str, found: _Found | None, folder: Path | None) -> int:
    """Save both in W&B, and say where they are."""
    try:
        entity = given.entity or _default_entity()
        for shown in _build(entity, project, found):
            shown.save()
            print(f"saved: {shown.url}")
    except Exception as error:  # noqa: BLE001  a server's answer, in one line
        line = " ".join(str(error).split())
        hint = "; are the runs there? `wandb sync` sends offline ones" if "not found" in line else ""
        return _say(f"W&B did not save the dashboard: {type(error).__name__}: {line}{hint}", FAILED)
    return 0


def _default_entity() -> str:
    from .wandb_account import default_entity

    return default_entity()


def _write(given: argparse.Namespace, project: str, found: _Found | None, folder: Path | None) -> int:
    """Write both down, and say how to save them."""
    from .wandb_objects import described

    workspace, report = (described(shown) for shown in _build(given.entity or "", project, found))
    path = given.out or (folder or Path()) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps({"workspace": workspace, "report": report}, indent=1))
    print(f"dashboard: {os.path.relpath(path)} (nothing was sent: WANDB_API_KEY is not set; set it and run this again)")
    if found is not None and found.offline:
        parents = sorted({os.path.relpath(run.parent) for run in found.offline})
        most = parents if len(parents) <= 3 else [os.path.join(os.path.relpath(folder or "."), "*", "wandb")]
        print(f"the runs first: wandb sync {' '.join(f'{parent}/offline-run-*' for parent in most)}")
    return 0


def _look(folder: Path) -> _Found:
    """The runs in ``folder`` and below."""
    runs = sorted(path.parent for path in folder.rglob("summary.json") if not {"wandb", "figures"} & {*path.parts})
    sweeps = [run.parent.name for run in runs if run.name.isdecimal()]
    summaries = {name for run in runs for name, section in read_summary(run).items() if section}
    offline = [path for run in runs for path in sorted(run.glob("wandb/offline-run-*"))]
    return _Found(tuple(dict.fromkeys(sweeps)), frozenset(summaries), tuple(offline))


def _say(line: str, status: int = BAD_CONFIG) -> int:
    print(f"kvarena-dashboard: {line}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvarena-dashboard",
        description="Build a workspace and a report for Weights & Biases: systems, latency, hits, memory, quality.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="DIR|PROJECT", nargs="?", help="runs' folder, or W&B project (kvarena)")
    parser.add_argument("--project", help="W&B project of the runs in DIR (default: kvarena)")
    parser.add_argument("--entity", help="W&B user or team (default: the account's)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="where to write if not saved (DIR/dashboard.json)")
    parser.add_argument("--save", action="store_true", help="save in W&B even where WANDB_API_KEY is not set")
    return parser
