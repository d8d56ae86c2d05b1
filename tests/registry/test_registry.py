"""Policies are found by entry point; a stranger's mistake is loud and names the distribution."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvarena.framework.policy import FAMILIES, Eviction
from kvarena.framework.registry import Registry
from kvarena.framework.schema import ConfigError

POLICY = """
from dataclasses import dataclass
from kvarena.framework.policy import ScoredEviction, register

@register("eviction", "{name}")
@dataclass
class Sample(ScoredEviction):
    weight: float = 1.0
    def score(self, run):
        return self.weight * run.last_use

class Unregistered(Sample):
    pass
"""


def install(site: Path, distribution: str, files: dict[str, str], group: str = "test.policies") -> None:
    """Lay out ``distribution`` in ``site`` as an installer would; its package has its name."""
    package = distribution.replace("-", "_")
    for name, text in {"__init__.py": "", **files}.items():
        (site / package / name).parent.mkdir(parents=True, exist_ok=True)
        (site / package / name).write_text(text)
    info = site / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{package} = {package}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_finds_every_module_of_a_package_and_nothing_unmarked(site: Path) -> None:
    files = {"a.py": POLICY.format(name="one"), "deep/__init__.py": "", "deep/b.py": POLICY.format(name="two")}
    install(site, "walked-plugin", files)
    registry = Registry.discover("test.policies")
    assert registry.names("eviction") == ["one", "two"]
    built = registry.build("eviction", "two", {"weight": 2})
    assert isinstance(built, Eviction) and built.weight == 2.0 and (built.family, built.name) == ("eviction", "two")
    assert registry.provenance("eviction", "one") == {"name": "one", "distribution": "walked-plugin", "version": "1.2"}


def test_an_import_of_anothers_policy_is_no_registration(site: Path) -> None:
    files = {"a.py": POLICY.format(name="one"), "b.py": "from .a import Sample"}
    install(site, "importing-plugin", files)
    assert Registry.discover("test.policies").names("eviction") == ["one"]


def test_a_duplicate_names_both_distributions(site: Path) -> None:
    install(site, "first-plugin", {"a.py": POLICY.format(name="same")})
    install(site, "second-plugin", {"a.py": POLICY.format(name="same")})
    with pytest.raises(ConfigError, match=r"(?=.*first-plugin 1\.2)(?=.*second-plugin 1\.2)(?=.*'same')"):
        Registry.discover("test.policies")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"bad.py": "import no_such_module_here"}, "No module named 'no_such_module_here'"),
        ({"bad.py": "def"}, "SyntaxError"),
        ({"bad/__init__.py": "raise RuntimeError('two\\nlines')"}, "RuntimeError: two lines"),
        ({"bad.py": "from kvarena.framework.policy import register\nregister('evicton', 'x')"}, "evicton"),
    ],
)
def test_a_broken_plugin_names_the_distribution(site: Path, files: dict[str, str], words: str) -> None:
    distribution = f"broken-plugin-{abs(hash(str(files)))}"
    install(site, distribution, files)
    with pytest.raises(ConfigError) as error:
        Registry.discover("test.policies")
    message = str(error.value)
    assert distribution in message and words in message and ".bad" in message and "\n" not in message


def test_unknown_names_list_the_known_and_the_nearest(site: Path) -> None:
    install(site, "named-plugin", {"a.py": POLICY.format(name="sample")})
    registry = Registry.discover("test.policies")
    with pytest.raises(ConfigError, match=r"unknown eviction policy 'smaple'; known: sample; did you mean 'sample'\?"):
        registry.build("eviction", "smaple", {})
    with pytest.raises(ConfigError, match="unknown policy family 'evict'.*did you mean 'eviction'"):
        registry.find("evict", "sample")
    with pytest.raises(ConfigError, match="eviction=sample: unknown knob 'wieght'.*did you mean 'weight'"):
        registry.build("eviction", "sample", {"wieght": 1})


def test_built_in_policies_come_through_the_same_door() -> None:
    registry = Registry.discover()
    for family in FAMILIES:
        for name in registry.names(family):
            assert registry.provenance(family, name)["distribution"] == "kvarena"
            assert registry.find(family, name).policy.__module__.startswith(f"kvarena.policies.{family}.")
