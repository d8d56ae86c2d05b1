"""What the tree promises: packages as listed, doors with names, files and functions of a readable size."""

from __future__ import annotations

import ast
import importlib
import statistics
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("framework", "policies", "kernels", "conf")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
DOORS = sorted(path.parent for path in (ROOT / "framework").rglob("__init__.py"))


def test_pyproject_lists_every_package() -> None:
    held = {path.parent.relative_to(ROOT) for path in SOURCES}
    assert sorted(SETUPTOOLS["packages"]) == sorted("kvarena." + ".".join(folder.parts) for folder in held)
    assert SETUPTOOLS["package-dir"] == {f"kvarena.{folder}": folder for folder in FOLDERS}


def test_every_file_of_a_package_is_shipped() -> None:
    shipped = {path for path in SOURCES}
    for package, patterns in SETUPTOOLS["package-data"].items():
        shipped |= {path for pattern in patterns for path in (ROOT / package.removeprefix("kvarena.")).glob(pattern)}
    present = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()}
    docs = {path for path in present if path.suffix == ".md" or "__pycache__" in path.parts or "local" in path.parts}
    assert sorted(str(path.relative_to(ROOT)) for path in present - shipped - docs) == []


def test_which_folders_are_packages() -> None:
    assert not (ROOT / "kernels/__init__.py").exists()
    assert (ROOT / "conf/__init__.py").exists()
    assert not (ROOT / "__init__.py").exists()


@pytest.mark.parametrize("folder", DOORS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_a_package_is_a_door(folder: Path) -> None:
    tree = ast.parse((folder / "__init__.py").read_text())
    logic = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Expr)]
    assert not logic
    assert ast.get_docstring(tree)
    names = [n.asname or n.name for node in tree.body if isinstance(node, ast.ImportFrom) for n in node.names]
    module = importlib.import_module("kvarena." + ".".join(folder.relative_to(ROOT).parts))
    if names:
        assert sorted(module.__all__) == sorted(names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_functions_are_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= (150 if path.is_relative_to(ROOT / "policies") else 400)
    if "triton" not in path.name:
        tree = ast.parse(path.read_text())
        long = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and _length(node) > 60]
        assert not long


def test_the_house_is_made_of_short_functions() -> None:
    nodes = [node for path in SOURCES if "triton" not in path.name for node in ast.walk(ast.parse(path.read_text()))]
    lengths = sorted(_length(node) for node in nodes if isinstance(node, ast.FunctionDef))
    assert statistics.median(lengths) < 10
    assert lengths[int(0.9 * len(lengths))] <= 25
    assert statistics.median(len(path.read_text().splitlines()) for path in SOURCES) <= 150


def test_no_function_changes_a_module() -> None:
    for path in SOURCES:
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Global)]
        assert not nodes, f"{path.relative_to(ROOT)}:{nodes[0].lineno}"


def _length(node: ast.FunctionDef) -> int:
    """Lines of code, without the docstring."""
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1
