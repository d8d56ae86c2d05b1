"""The page of each family: its table is the catalogue's, its example runs, its commands compose."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kvarena.framework.catalogue import markdown, read_catalogue
from kvarena.framework.options import config_folders
from kvarena.framework.policy import FAMILIES, Policy

POLICIES = Path(__file__).parents[2] / "policies"
PAGES = {family: (POLICIES / family / "README.md").read_text(encoding="utf-8") for family in FAMILIES}
CATALOGUE = read_catalogue()
TORCH = ("truncation", "compression")  # whose examples take seconds to load it
SECTIONS = ["The contract", "The policies", "Ten lines", "Looking at a decision"]
pages = pytest.mark.parametrize("family", FAMILIES)


def commands(page: str) -> list[list[str]]:
    """The kvarena commands of ``page``, as words."""
    lines = page.replace(" \\\n", " ").splitlines()
    indented = [line.strip() for line in lines if line.startswith("    ")]
    return [shlex.split(line) for line in indented if line.startswith("kvarena ")]


def _run(source: str, names: dict[str, object]) -> None:
    exec(compile(source, "README.md", "exec", dont_inherit=True), names)  # noqa: S102


@pages
def test_a_page_has_its_sections(family: str) -> None:
    assert re.findall(r"^## (.*)$", PAGES[family], re.MULTILINE) == SECTIONS
    assert f"kvarena-new-policy {family}" in PAGES[family]


@pages
def test_the_table_is_the_catalogues(family: str) -> None:
    entries = [entry for entry in CATALOGUE.of(family) if entry.distribution == "kvarena"]
    found = re.search(r"<!-- policies -->\n(.*)\n<!-- end -->", PAGES[family], re.DOTALL)
    assert found is not None
    assert found[1] == markdown(entries), f"paste what `kvarena --policies {family} --markdown` prints"


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.e2e] * (f in TORCH)) for f in FAMILIES])
def test_the_example_runs_and_prints_what_it_says(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    policy, use = re.findall(r"```python\n(.*?)```", PAGES[family], re.DOTALL)
    names: dict[str, object] = {"__name__": "page"}
    _run(policy, names)
    (made,) = [n for n in names.values() if isinstance(n, type) and issubclass(n, Policy) and "name" in vars(n)]
    assert made.family == family
    assert 5 <= len(policy.split("@register")[1].splitlines()) <= 13
    _run(use, names)
    printed, said = capsys.readouterr().out, re.findall(r"print\(.*\)  # ((?:tick|Counter|[\[{(\d]).*)", use)
    for line in said:
        assert re.split(r": the last|: it computes", line)[0] in printed


@pages
def test_the_commands_name_what_there_is(family: str) -> None:
    groups = {path.parent.name: path.parent for folder in config_folders() for path in folder.glob("*/*.yaml")}
    found = commands(PAGES[family])
    assert found
    for words in found:
        for word in words[1:]:
            key, _, value = word.partition("=")
            for option in value.split(",") if key in groups else ():
                assert (groups[key] / f"{option}.yaml").is_file(), word
