"""``--help``, ``--experiments`` and ``--version``: what there is, in few lines, without composing anything."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import version
from itertools import takewhile

from ..options import config_folders
from ..policy import FAMILIES

USAGE = """\
kvarena compares the policies that decide what an LLM server keeps in its KV cache across the turns of a conversation.

  kvarena [group=option ...] [key=value ...]    run once
  kvarena -m [group=a,b] [key=1,2] ...          run every combination and compare; the same command again resumes it
  kvarena -m experiment=quickstart              a first look: five systems, two minutes
  kvarena -m system=vllm,pensieve 'seed=range(3)' backend=simulated model=llama-3-8b hardware=h100
  kvarena experiment=throughput_latency system=vllm,pensieve      up to saturation, found by itself
"""
SECTIONS = (
    ("What runs", ("task", "experiment")),
    ("A system is a choice of one policy per family; what you choose overrides it", ("system", *FAMILIES)),
    ("Load, and where it runs", ("workload", "backend", "model", "hardware", "memory", "tracking")),
)
REST = """\
Keys and flags
  seed=0 workload.rate=R memory.device_tokens=N runs=DIR resume=false    --cfg job [...]: every key and what it means
  -m hydra/launcher=joblib hydra.launcher.n_jobs=4: side by side; ray, submitit_slurm too (extras joblib, ray, submitit)
  --experiments, --policies [FAMILY]: a line each    --version    eval "$(kvarena -sc install=bash)": completion

Other commands: kvarena-report DIR... (compare sweeps), kvarena-new-policy FAMILY NAME (a plugin to begin with)
Results: runs/<experiment>/<time>/. Exit status: 0; 1: a run failed; 2: bad configuration; 130: interrupted.\
"""
WIDTH = 120


def print_version() -> None:
    """Ours; Hydra's is in ``--hydra-help``."""
    print(f"kvarena {version('kvarena')}")


def print_help() -> None:
    """Usage, the options of every group, flags and exit statuses."""
    print(USAGE)
    for title, groups in SECTIONS:
        print(f"{title}\n" + "\n".join(_group(group) for group in groups) + "\n")
    print(REST)


def _group(group: str) -> str:
    names = ", ".join(options(group))
    return _fill(f"{group}: {names}", "  ", "    ")


def _fill(text: str, indent: str, more: str) -> str:
    """``text`` in lines; names stay whole."""
    lines = textwrap.wrap(
        text, _width(), initial_indent=indent, subsequent_indent=more, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines)


def _width() -> int:
    """A terminal's, within reason."""
    return max(60, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)) if sys.stdout.isatty() else WIDTH


def options(group: str) -> list[str]:
    """The options of ``group``, of all distributions."""
    return sorted({path.stem for folder in config_folders() for path in (folder / group).glob("*.yaml")})


def print_experiments() -> None:
    """Every experiment, with what its file says of itself first."""
    width = max(map(len, options("experiment"))) + 2
    for name, summary in experiments():
        print(_fill(f"{name:<{width}}{summary}", "", " " * width))
    print("\nkvarena experiment=NAME runs it; the comments in its file in conf/experiment say what to look for.")


def experiments() -> Iterator[tuple[str, str]]:
    """(name, what its file says of itself first) of each experiment but ``default``."""
    for name in options("experiment"):
        if name != "default":
            found = (folder / "experiment" / f"{name}.yaml" for folder in config_folders())
            yield name, first_clause(next(path for path in found if path.is_file()).read_text(encoding="utf-8"))


def first_clause(source: str) -> str:
    """The comment at the top of a YAML file up to its first full stop, colon or semicolon, without parentheses."""
    lines = takewhile(lambda line: line.startswith("#"), source.splitlines())
    text = " ".join(" ".join(line.lstrip("# ") for line in lines if "@package" not in line).split())
    return re.split(r"[.:;](?:\s|$)", re.sub(r"\s*\([^)]*\)", "", text))[0]
