"""``kvarena --policies``: all there is, from the docstrings, whatever one plugin does."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint, distributions
from pathlib import Path

import pytest

from kvarena.framework.catalogue import Entry, main, papers_of, question, read_catalogue
from kvarena.framework.policy import FAMILIES, Policy
from kvarena.framework.registry import Registry

WITHOUT_PAPER = {  # ideas without one, code without one, and what is no idea
    *("fifo", "lfu", "lru", "ttl", "none", "on_evict", "write_through", "hicache", "chunked", "single"),
    *("future", "logged", "random"),
}
POLICY = '''
"""{line}"""
from dataclasses import dataclass
from kvarena.framework.policy import ScoredEviction, register

@register("eviction", "{name}")
@dataclass
class Sample(ScoredEviction):
    """As in Ann and Bob, "A title", VENUE 2031, section 4."""
    def score(self, run):
        return run.last_use
'''


def plugin(site: Path, distribution: str, files: dict[str, str]) -> list[EntryPoint]:
    """The entry points of ``distribution``, laid out in ``site``: of its policies and of its options."""
    package = distribution.replace("-", "_")
    for name, text in {"__init__.py": "", "conf/__init__.py": "", **files}.items():
        (site / package / name).parent.mkdir(parents=True, exist_ok=True)
        (site / package / name).write_text(text)
    info = site / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[test.policies]\nx = {package}\n[test.conf]\nx = {package}.conf\n")
    (found,) = distributions(name=distribution, path=[str(site)])
    return sorted(found.entry_points, key=lambda point: point.group, reverse=True)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


CATALOGUE = read_catalogue()
BUILT_IN = [entry for entry in CATALOGUE.entries if entry.distribution == "kvarena"]


def test_every_policy_is_there_with_a_line_and_its_options() -> None:
    registry, entries = Registry.discover(), CATALOGUE.entries
    assert [(e.family, e.name) for e in entries] == [(f, n) for f in FAMILIES for n in registry.names(f)]
    for entry in BUILT_IN:
        assert entry.summary.endswith(".") and 20 <= len(entry.summary) <= 105, entry
        assert entry.name in entry.options, entry
    assert [entry.options for entry in BUILT_IN if entry.name == "hicache"] == [
        ("hicache", "hicache_best_effort", "hicache_wait")
    ]


def test_lines_differ_and_papers_are_named() -> None:
    lines = [entry.summary for entry in BUILT_IN]
    assert len(set(lines)) == len(lines)
    assert {entry.name for entry in BUILT_IN if not entry.papers} == WITHOUT_PAPER
    assert [entry.papers for entry in BUILT_IN if entry.name == "retention"] == [
        ('Yu et al., "Stateful LLM serving with Pensieve", EuroSys 2025',)
    ]


JIN = 'Jin et al., "Why not both?" (Cake), arXiv 2410.03065'
IEEE = 'Ann, Bob and Eve, "On K/V", IEEE Computer 27(3), 1994'


@pytest.mark.parametrize(
    ("text", "papers"),
    [
        (f"{JIN}.", [JIN]),
        (f"As in {IEEE}.".replace(", IEEE", ",\n    IEEE"), [IEEE]),
        (f'{IEEE}, section 3; Two et al., "B", X 2025.', [IEEE, 'Two et al., "B", X 2025']),
        ('"No author", 2024, and Defaults are 4,096 and 2024 tokens.', []),
    ],
)
def test_papers_are_found_in_docstrings(text: str, papers: list[str]) -> None:
    assert list(papers_of(type("Sample", (Policy,), {"__doc__": text}))) == papers


def test_a_broken_plugin_is_named_and_hides_no_other(site: Path) -> None:
    good, options = plugin(
        site,
        "good-plugin",
        {"a.py": POLICY.format(line="A line.", name="one"), "conf/eviction/one.yaml": "name: one\n"},
    )
    bad, _ = plugin(site, "bad-plugin", {"b.py": "import no_such_module"})
    catalogue = read_catalogue([bad, good], [options])
    (entry,) = catalogue.entries
    assert (entry.name, entry.summary, entry.options) == ("one", "A line.", ("one",))
    assert (entry.distribution, entry.version) == ("good-plugin", "1.2")
    assert entry.papers == ('Ann and Bob, "A title", VENUE 2031',)
    (problem,) = catalogue.problems
    assert "bad-plugin 1.2 is broken" in problem and "no_such_module" in problem


def test_two_of_a_name_are_a_problem_and_both_are_listed(site: Path) -> None:
    files = {"a.py": POLICY.format(line="A line.", name="same")}
    points = [plugin(site, name, files)[0] for name in ("p-one", "p-two")]
    catalogue = read_catalogue(points, [])
    assert [entry.distribution for entry in catalogue.entries] == ["p-one", "p-two"]
    (problem,) = catalogue.problems
    assert "p-one 1.2" in problem and "p-two 1.2" in problem


def test_a_policy_without_a_yaml_cannot_be_chosen_and_is_shown_so(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point, conf = plugin(site, "bare-plugin", {"a.py": POLICY.format(line="Two\nlines [b]x[/b].", name="bare")})
    catalogue = read_catalogue([point], [conf])
    monkeypatch.setattr("kvarena.framework.catalogue.read_catalogue", lambda: catalogue)
    assert main(["--policies", "eviction"]) == 0
    shown = capsys.readouterr().out
    assert "bare (no YAML)" in shown and "Two " in shown and "lines" not in shown.replace("Two lines", "")


def test_every_family_has_a_question() -> None:
    assert question("eviction") == "which pages leave a full tier, and which are copied down in advance"
    assert all(len(question(family)) > 20 for family in FAMILIES)


def test_bad_arguments_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--policies", "evictoin"]) == 2
    assert capsys.readouterr().err.endswith("; did you mean 'eviction'?\n")
    with pytest.raises(SystemExit) as stop:
        main(["--policies", "--yaml"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "kvarena: --policies: unrecognized arguments: --yaml; see kvarena --policies --help\n"
    )


COMMAND = """
import sys
sys.argv = ["kvarena", "--policies", "--json"]
from kvarena.framework.cli import main
status = main()
sys.exit(status or "torch" in sys.modules or "wandb" in sys.modules)
"""


def test_the_command_prints_json_and_loads_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert {policy["family"] for policy in found["policies"]} == set(FAMILIES)
    assert found["policies"][0].keys() == set(Entry.__dataclass_fields__)
