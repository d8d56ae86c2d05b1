"""Writing the distribution."""

from __future__ import annotations

import ast
from pathlib import Path
from string import Template

from .kinds import Kind
from .names import Names

TEMPLATES = Path(__file__).with_name("templates")


def write_distribution(kind: Kind, name: str, folder: Path) -> list[Path]:
    """Write the distribution of a new policy into ``folder``, which is made; the files, relative to it.

    Raises
    ------
    FileExistsError
        If ``folder`` is there and not empty, or is a file. Nothing is written then.
    OSError
        If it cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError("it exists already and is not an empty folder")
    files = _files(kind, Names(name))
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return [Path(path) for path in files]


def _files(kind: Kind, names: Names) -> dict[str, str]:
    """The text of each file by its path."""
    words = {
        "name": names.name,
        "cls": names.cls,
        "package": names.package,
        "distribution": names.distribution,
        "family": kind.family,
        "contract": kind.contract,
        "tested": kind.tested,
        "choice": kind.choice(names.name),
        "sweep": kind.sweep(names.name),
    }
    own, common, source = TEMPLATES / kind.folder, TEMPLATES / "common", f"src/{names.package}"
    policy = _filled(own / "policy.py.txt", words)
    line = (ast.get_docstring(ast.parse(policy)) or "").splitlines()[0]
    words["about"] = f"{line} A starting point that works: change it."
    words["debug"] = _filled(own / "debug.md", words).strip()
    return {
        "pyproject.toml": _filled(common / "pyproject.toml.txt", words),
        "README.md": _filled(common / "README.md", words),
        ".gitignore": _filled(common / "gitignore", words),
        f"{source}/__init__.py": f'"""The {kind.family} policy {names.name} for kvarena."""\n',
        f"{source}/policies/__init__.py": '"""The policies; kvarena reads every module here."""\n',
        f"{source}/policies/{names.name}.py": policy,
        f"{source}/conf/__init__.py": '"""The options: a folder for each family, a YAML for each option."""\n',
        f"{source}/conf/{kind.family}/{names.name}.yaml": _filled(own / "knobs.yaml", words),
        f"tests/test_{names.name}.py": _filled(own / "test.py.txt", words),
        "tests/test_package.py": _filled(common / "test_package.py.txt", words),
    }


def _filled(path: Path, words: dict[str, str]) -> str:
    return Template(path.read_text(encoding="utf-8")).substitute(words)
