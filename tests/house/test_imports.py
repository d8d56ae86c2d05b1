"""Imports only point down, each foreign package has one door, and light commands stay light."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for folder in ("framework", "policies", "kernels", "conf") for p in (ROOT / folder).rglob("*.py"))


@functools.cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """(absolute name, at module level) of everything that ``path`` imports; each file is parsed once."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    package = ["kvarena", *path.relative_to(ROOT).with_suffix("").parts][:-1]
    tree = ast.parse(path.read_text())
    typing_only = {n for node in ast.walk(tree) if _is_type_checking(node) for n in ast.walk(node)}
    inner = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in inner) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", node not in inner) for alias in node.names)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def importers(package: str) -> set[str]:
    """Files that import ``package`` anywhere."""
    found = set()
    for path in SOURCES:
        names = [name for name, _ in imports(path)]
        if any(name == package or name.startswith(package + ".") for name in names):
            found.add(path.relative_to(ROOT).as_posix())
    return found


def test_there_is_something_to_look_at() -> None:
    assert len(SOURCES) > 60
    assert "framework/cli/application.py" in importers("hydra")


@pytest.mark.parametrize(
    ("package", "door"),
    [
        ("triton", "kernels/"),
        ("wandb", ("framework/metrics/tracking_wandb.py", "framework/dashboard/")),
        ("wandb_workspaces", "framework/dashboard/"),
        ("hydra", "framework/cli/"),
        ("transformers", "framework/execution/"),
        ("datasets", "framework/workloads/"),
    ],
)
def test_each_foreign_package_has_one_door(package: str, door: str | tuple[str, ...]) -> None:
    assert {path for path in importers(package) if not path.startswith(door)} == set()


def test_torch_is_imported_late_outside_kernels_and_execution() -> None:
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(("kernels/", "framework/execution/")):
            eager = [module for module, at_top in imports(path) if at_top and module.split(".")[0] == "torch"]
            assert not eager, name


MEMORY = tuple(  # what the backends are asked to move is all that they know of the store
    f"kvarena.framework.memory.{path.stem}"
    for path in sorted((ROOT / "framework/memory").glob("*.py"))
    if path.stem not in ("moves", "__init__")
)
FLOORS = (
    ("kernels", ("kvarena.framework", "kvarena.policies")),
    ("framework/policy", ("kvarena.policies", "kvarena.kernels")),
    ("framework", ("kvarena.policies",)),
    ("framework/memory", ("kvarena.framework.engine", "kvarena.framework.execution", "kvarena.framework.report")),
    ("framework/execution", ("kvarena.framework.engine", *MEMORY, "kvarena.framework.report")),
    ("framework/workloads", ("kvarena.framework.engine", "kvarena.framework.memory", "kvarena.framework.execution")),
    ("framework/metrics", ("kvarena.framework.engine", "kvarena.framework.memory", "kvarena.framework.report")),
    ("framework/report", ("kvarena.framework.engine", "kvarena.framework.memory", "kvarena.framework.execution")),
)
DOORS = ("kvarena.framework.cli", "kvarena.framework.serve", "kvarena.framework.session")


@pytest.mark.parametrize(("floor", "above"), FLOORS)
def test_imports_point_down(floor: str, above: tuple[str, ...]) -> None:
    doors = DOORS if floor != "framework" else ("kvarena.framework.cli",)
    for path in SOURCES:
        if path.is_relative_to(ROOT / floor) and not path.is_relative_to(ROOT / "framework/cli"):
            wrong = [name for name, _ in imports(path) if name.startswith((*above, *doors))]
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_policies_import_only_the_policy_surface_and_kernels() -> None:
    for path in sorted((ROOT / "policies").rglob("*.py")):
        ours = [name for name, _ in imports(path) if name.startswith("kvarena.")]
        allowed = ("kvarena.framework.policy", "kvarena.kernels", "kvarena.policies")
        assert all(name.startswith(allowed) for name in ours), f"{path.relative_to(ROOT)}: {ours}"


def test_inside_the_repository_imports_are_relative() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom | ast.Import):
                continue
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] == "kvarena" for name in names), path.relative_to(ROOT)


LIGHT = """
import sys
from kvarena.framework.cli import main
status = main()
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "wandb", "triton"})
sys.exit(f"status {status}, imported {heavy}" if status or heavy else 0)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["backend=simulated", "model=llama-3-8b", "hardware=h100", "tracking=none", "workload.limit=2"],
    ],
    ids=["help", "simulated"],
)
def test_help_and_simulated_runs_import_neither_torch_nor_transformers(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIGHT, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
