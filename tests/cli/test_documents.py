"""Every ``kvarena`` command that the documents and protocols show is one that exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser

from kvarena.framework.cli import sweep_jobs

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "runs/README.md", "runs/*.sh", "framework/**/README.md", "policies/**/README.md")
    for path in ROOT.glob(pattern)
)
FLAGS = ("-m", "--multirun")
OTHER = ("--", "-sc", "'")  # --help and its like, completion


def commands(path: Path) -> Iterator[str]:
    """Whole commands on lines of their own, continued ones joined, comments left out."""
    start = r"(?:# {4})?" if path.suffix == ".sh" else r" {4}"
    for line in re.sub(r"\\\n\s*", " ", path.read_text()).splitlines():
        found = re.match(rf"^{start}(kvarena(?: .*)?)$", line)
        if found and " $" not in found[1].replace(' "$@"', ""):  # no template
            yield re.sub(r"\s+#.*", "", found[1]).strip()


FOUND = list(dict.fromkeys((path, command) for path in DOCUMENTS for command in commands(path)))


def test_there_are_some() -> None:
    assert len(FOUND) > 25
    assert {path.suffix for path, _ in FOUND} == {".md", ".sh"}


@pytest.fixture(scope="module", autouse=True)
def hydra_is_ready() -> Iterator[None]:
    with initialize_config_module("kvarena.conf", version_base="1.3"):
        yield


@pytest.mark.e2e
@pytest.mark.parametrize("command", dict.fromkeys(command for _, command in FOUND))
def test_a_command_composes(command: str) -> None:
    words = [word for word in shlex.split(command)[1:] if word not in (*FLAGS, "$@")]
    if any(word.startswith(OTHER) for word in words):
        pytest.skip("a flag, not a config")
    (first, *_) = sweep_jobs(OverridesParser.create().parse_overrides(words), ())
    compose("config", first)


def test_every_experiment_but_the_defaults_has_a_place_in_the_documents() -> None:
    told = "\n".join(path.read_text() for path in DOCUMENTS)
    names = {path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")} - {"default"}
    assert {name for name in names if f"{name}" not in told} == set()
