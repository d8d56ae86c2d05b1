"""How much room is left: against a cache that never evicts, and against Belady where it ran."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kvarena.framework.report import compare, load_run
from kvarena.framework.report.regret import with_regret
from kvarena.framework.report.rows import Row

RunMaker = Callable[..., Path]
BELADY = {"eviction": {"name": "belady", "distribution": "kvarena", "version": "0.1.0", "oracle": True}}


def regret(*folders: Path) -> list[dict[str, Any]]:
    rows = [Row(folder.name, folder.name, (load_run(folder),)) for folder in folders]
    return [run.summary["regret"] for row in with_regret(rows) for run in row.runs]


def test_against_an_infinite_cache(make_run: RunMaker) -> None:
    """Reusable, but neither reused nor dropped by truncation."""
    found = regret(make_run("all", hit=1.0), make_run("half", hit=0.5), make_run("none", hit=0.0))
    assert [one["infinite"] for one in found] == [0.0, 0.5, 1.0]
    folder = make_run("cut", hit=0.5)
    summary = json.loads((folder / "summary.json").read_text())
    reusable = summary["workload"]["reusable_tokens"]
    summary["cache"]["recomputed_tokens"] -= reusable // 4
    summary["cache"]["dropped_tokens"] = reusable // 4
    (folder / "summary.json").write_text(json.dumps(summary))
    assert regret(folder)[0]["infinite"] == pytest.approx(0.25, abs=1e-4)


def test_against_belady_of_the_same_seed(make_run: RunMaker) -> None:
    best = [make_run("belady", seed, hit=hit, policies=BELADY) for seed, hit in ((0, 0.8), (1, 0.6))]
    other = make_run("pensieve+belady", hit=0.4, policies=BELADY)
    own = [make_run("vllm", seed, hit=0.5) for seed in (0, 1, 2)]
    found = [one["belady"] for one in regret(*best, other, *own)]
    assert found[:2] == [0.0, 0.0]
    assert found[2:5] == [pytest.approx(0.4), pytest.approx(0.3), pytest.approx(0.1)]
    assert found[5] is None  # nobody saw the future of seed 2


def test_nothing_reusable_has_no_regret(make_run: RunMaker) -> None:
    folder = make_run("vllm")
    summary = json.loads((folder / "summary.json").read_text())
    summary["workload"]["reusable_tokens"] = 0
    (folder / "summary.json").write_text(json.dumps(summary))
    assert regret(folder)[0]["infinite"] is None


def shown(folders: list[Path], out: Path, width: int = 200) -> tuple[str, str, list[dict[str, str]]]:
    comparison = compare(folders, out, figures=False)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(comparison)
    rows = list(csv.DictReader(io.StringIO((out / "comparison.csv").read_text())))
    return console.export_text(), (out / "comparison.md").read_text(), rows


def test_every_table_has_the_column(make_run: RunMaker, tmp_path: Path) -> None:
    text, markdown, rows = shown([make_run("vllm", hit=0.75), make_run("vllm_stateless", hit=0.0)], tmp_path / "out")
    assert "| regret [% recomputed] |" in markdown
    assert "belady" not in markdown
    assert (
        "regret: reusable tokens computed again, all of which a cache that never evicts would have reused" in markdown
    )
    assert "regret" in text
    lines = [line for line in markdown.splitlines() if line.startswith("| vllm")][:2]
    assert [line.split("|")[-2].strip() for line in lines] == ["**25.1**", "100"]
    assert [round(float(row["measured_regret_infinite"]), 2) for row in rows] == [0.25, 1.0]
    assert [row["measured_regret_belady"] for row in rows] == ["", ""]


def test_belady_has_a_column_where_it_ran(make_run: RunMaker, tmp_path: Path) -> None:
    folders = [make_run("vllm", hit=0.5), make_run("vllm+eviction=belady", hit=0.75, policies=BELADY)]
    _, markdown, rows = shown(folders, tmp_path / "out")
    assert "| regret [% recomputed] | below belady [points] |" in markdown
    assert float(rows[0]["measured_regret_belady"]) == pytest.approx(0.25, abs=2e-3)
    oracle = next(line for line in markdown.splitlines() if line.startswith("| vllm+eviction=belady"))
    assert "**" not in oracle


def test_a_narrow_terminal_keeps_the_share_and_leaves_the_count(make_run: RunMaker, tmp_path: Path) -> None:
    text, _, _ = shown([make_run("vllm", hit=0.5), make_run("vllm_stateless", hit=0.0)], tmp_path / "out", width=80)
    assert "regret" in text
    assert "…" not in text
    assert "recomputed" in text
    assert load_run(tmp_path / "vllm-0").figure("cache", "recomputed_tokens") is not None
