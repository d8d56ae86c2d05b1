"""``kvarena-new-policy``: what it writes works as it is, for every family; what is bad is one line."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kvarena.framework.policy import FAMILIES
from kvarena.framework.scaffold import KINDS, Names, main, write_distribution

BAD = 2
every = pytest.mark.parametrize("kind", KINDS)


def lay_out(project: Path, site: Path) -> None:
    """Make ``project`` known in ``site`` as an editable install would."""
    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    info = site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    lines = []
    for group, points in about["entry-points"].items():
        lines += [f"[{group}]\n", *(f"{key} = {value}\n" for key, value in points.items())]
    (info / "entry_points.txt").write_text("".join(lines))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distribution of each kind, all known to kvarena."""
    folder = tmp_path_factory.mktemp("workshop")
    for kind in KINDS:
        write_distribution(KINDS[kind], f"try_{kind.replace('-', '_')}", folder / kind)
        lay_out(folder / kind, folder / "site")
    return folder


def environment(workshop: Path) -> dict[str, str]:
    """Of a process that sees the distributions of ``workshop``."""
    sources = [str(workshop / kind / "src") for kind in KINDS]
    paths = os.pathsep.join([*sources, str(workshop / "site")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run_tests(workshop: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the distributions' own tests, in one process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, *arguments]
    command += ["--import-mode=importlib", "--rootdir", ".", *(f"{kind}/tests" for kind in KINDS)]
    env = environment(workshop)
    return subprocess.run(command, cwd=workshop, env=env, capture_output=True, text=True, timeout=500, check=False)


def test_there_is_a_kind_for_every_family() -> None:
    assert {kind.family for kind in KINDS.values()} == set(FAMILIES)


def test_the_tests_of_all_families_pass_but_those_that_serve(workshop: Path) -> None:
    done = run_tests(workshop, "-k", "package or lru or bad_knobs or stays or fits or oldest_half or loads_what")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and int(done.stdout.split(" passed")[0].split()[-1]) >= 30


@pytest.mark.parametrize("name", ["x", "my_policy", "a_name_of_twenty_eight_chars"])
def test_what_is_written_is_lint_clean_whatever_the_name(name: str, tmp_path: Path) -> None:
    for kind in KINDS.values():
        write_distribution(kind, name, tmp_path / kind.folder)
    for arguments in (("check", "-q"), ("format", "-q", "--check")):
        command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@every
def test_no_word_is_left_to_fill_in(kind: str, workshop: Path) -> None:
    texts = [path.read_text() for path in (workshop / kind).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert len(texts) >= 10
    assert not any("$" in text or "TODO" in text for text in texts)


def test_the_command_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "with a space"
    assert main(["eviction", "fresh_policy", "--out", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"pip install -e '{folder}'" in printed
    assert "eviction=lru,fresh_policy" in printed
    assert (folder / "src/kvarena_fresh_policy/policies/fresh_policy.py").is_file()
    assert main(["eviction", "fresh_policy", "--out", str(folder)]) == BAD
    assert capsys.readouterr().err == (
        f"kvarena-new-policy: cannot write {folder}: it exists already and is not an empty folder\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evicton", "mine"], "unknown family 'evicton'; known: eviction, writeback"),
        (["evicton", "mine"], "did you mean 'eviction'?"),
        (["eviction", "MyPolicy"], "did you mean 'my_policy'?"),
        (["eviction", "my-policy"], "did you mean 'my_policy'?"),
        (["eviction", "2fast"], "did you mean 'fast'?"),
        (["eviction", "class"], "no Python keyword"),
        (["eviction", "x" * 29], "at most 28 characters"),
        (["eviction", "../up"], "name is '../up'"),
        (["eviction", "lru"], "there is eviction=lru already, of kvarena "),
        (["prefetch", "hicache_wait"], "there is prefetch=hicache_wait already"),
        (["eviction", "mine", "--context"], "--context belongs to truncation"),
        (["eviction", "mine", "--out", "/dev/null"], "cannot write /dev/null: it exists already"),
        (["eviction", "mine", "--out", "/dev/null/x"], "cannot write /dev/null/x: Not a directory"),
    ],
)
def test_what_is_bad_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == BAD
    error = capsys.readouterr().err
    assert said in error and error.startswith("kvarena-new-policy: ") and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["eviction"], ["eviction", "mine", "--colour"]])
def test_bad_usage_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == BAD
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "cls"), [("my_policy", "MyPolicy"), ("scored_eviction", "ScoredEvictionPolicy"), ("none", "NonePolicy")]
)
def test_a_class_name_never_hides_another(name: str, cls: str) -> None:
    assert Names(name).cls == cls


@pytest.mark.e2e
def test_the_tests_of_all_families_pass_whole(workshop: Path) -> None:
    done = run_tests(workshop)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split(" passed")[0].split()[-1]) >= 55


@pytest.mark.e2e
def test_types_are_right_without_those_of_kvarena(workshop: Path) -> None:
    """As with an editable install of kvarena, which mypy does not follow; all kinds at once, for it takes seconds."""
    names = {kind: f"try_{kind.replace('-', '_')}" for kind in KINDS}
    files = [f"{kind}/src/kvarena_{name}/policies/{name}.py" for kind, name in names.items()]
    files += [f"{kind}/tests/test_{name}.py" for kind, name in names.items()]
    command = [sys.executable, "-m", "mypy", "--config-file", "eviction/pyproject.toml", "--cache-dir", "cache"]
    env = {**os.environ, "MYPYPATH": os.pathsep.join(f"{kind}/src" for kind in KINDS)}
    words = [*command, *files, "eviction/tests/test_package.py"]
    done = subprocess.run(words, cwd=workshop, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
