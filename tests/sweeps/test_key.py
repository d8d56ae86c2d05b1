"""What makes two sweeps the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvarena.framework.sweeps import code_version, identity, key, sweep_key

ONE, OTHER = ("system=a", "seed=0"), ("system=a", "seed=1")


def test_the_order_of_words_and_jobs_makes_no_difference() -> None:
    jobs = [(ONE, {"seed": 0}), (OTHER, {"seed": 1})]
    turned = [(tuple(reversed(words)), config) for words, config in reversed(jobs)]
    assert sweep_key(jobs) == sweep_key(turned)


@pytest.mark.parametrize(
    "other",
    [
        [(ONE, {"seed": 0})],
        [(ONE, {"seed": 0}), (OTHER, {"seed": 2})],
        [(ONE, {"seed": 0}), (("system=b", "seed=1"), {"seed": 1})],
    ],
)
def test_other_jobs_or_configs_are_another_sweep(other: list[tuple[tuple[str, ...], dict[str, object]]]) -> None:
    assert sweep_key(other) != sweep_key([(ONE, {"seed": 0}), (OTHER, {"seed": 1})])


def test_where_and_how_it_runs_makes_no_difference() -> None:
    words = ("seed=0", "resume=false", "runs=elsewhere", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert identity(words) == ("seed=0",)
    assert sweep_key([(words, {"runs": "elsewhere"})]) == sweep_key([(("seed=0",), {"runs": "runs"})])


def test_a_file_that_changed_makes_another_sweep(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("{}\n")
    jobs = [(ONE, {"workload": {"path": str(path), "files": [str(path)]}})]
    before = sweep_key(jobs)
    assert sweep_key(jobs) == before
    os.utime(path, ns=(1, 1))
    assert sweep_key(jobs) != before


def test_the_code_is_told_apart_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "engine.py").write_text("a = 1\n")
    monkeypatch.setattr(key, "_roots", lambda package: [tmp_path])
    before = code_version()
    (tmp_path / "notes.md").write_text("not code\n")
    assert code_version() == before
    (tmp_path / "engine.py").write_text("a = 2\n")
    assert code_version() != before
