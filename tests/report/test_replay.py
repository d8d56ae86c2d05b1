"""Tables and curves of replays, made from summaries by hand."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from rich.console import Console

from kvarena.framework.report import Comparison, compare

RunMaker = Callable[..., Path]


def point(capacity: int, hits: int, belady: int | None = None) -> dict[str, Any]:
    ratio = None if belady is None else belady / 1000
    counted = {"accesses": 1000, "hits": hits, "hit_ratio": hits / 1000, "evictions": 1000 - hits}
    return {
        "capacity": capacity, **counted, "refused_requests": 0, "belady_hits": belady, "belady_hit_ratio": ratio
    }  # fmt: skip


def write(folder: Path, policy: str, *points: dict[str, Any], seed: int = 0, **more: Any) -> Path:
    """The folder of a replay of ``policy``, 0.9 of whose accesses an infinite cache finds."""
    folder.mkdir()
    run = {
        "seed": seed, "backend": "torch", "system": "vllm", "workload": "mooncake", "model": "tiny",
        "hardware": "local", "status": "ok", "version": "0.1.0", "task": "replay",
        "policies": {"eviction": {"name": policy, "oracle": policy == "belady"}},
        "overrides": more.pop("overrides", []),
    }  # fmt: skip
    replay = {"semantics": "block", "page_tokens": 512, **points[-1], "infinite_hits": 900, "infinite_hit_ratio": 0.9}
    replay |= {"curve": list(points), **more}
    content = {"schema": 1, "run": run, "workload": {"requests": 50}, "replay": replay}
    (folder / "summary.json").write_text(json.dumps(content))
    return folder


def rows_of(comparison: Comparison) -> dict[str, list[str]]:
    cells = [line.strip("|").split("|") for line in comparison.markdown().splitlines() if line.startswith("| ")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}


def test_one_capacity_tells_counts_and_regret(tmp_path: Path) -> None:
    folders = [write(tmp_path / "a", "lru", point(8, 300, 700)), write(tmp_path / "b", "fifo", point(8, 250, 700))]
    comparison = compare(folders, tmp_path / "out")
    rows = rows_of(comparison)
    assert rows["policy"] == [
        "8 pages [% hits]", "hits [pages]", "evictions [pages]", "below belady [points]", "below infinite [points]"
    ]  # fmt: skip
    assert rows["lru"] == ["**30.00**", "300", "700", "40.00", "60.00"]
    assert rows["fifo"] == ["25.00", "250", "750", "45.00", "65.00"]
    assert rows["belady (oracle)"] == ["70.00", "700", "-", "0.00", "20.00"]
    assert rows["infinite cache"] == ["90.00", "-", "-", "-", "0.00"]
    assert comparison.tables == ()
    assert [path.name for path in comparison.files] == [
        "comparison.md",
        "comparison.csv",
        "comparison.html",
        "miss_ratio.png",
    ]


def test_a_curve_has_a_column_for_each_capacity(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / "a", "lru", point(8, 300), point(16, 500)),
        write(tmp_path / "b", "arc", point(8, 400), point(16, 500)),
        write(tmp_path / "c", "belady", point(8, 600), point(16, 900)),
    ]
    comparison = compare(folders, tmp_path / "out")
    rows = rows_of(comparison)
    assert rows["lru"] == ["30.00", "50.00", "35.00", "50.00"]
    assert rows["arc"] == ["**40.00**", "50.00", "30.00", "45.00"]
    assert rows["belady (oracle)"][:2] == ["60.00", "90.00"]
    assert list(rows)[2:] == ["lru", "arc", "belady (oracle)", "infinite cache"]


@pytest.mark.parametrize("beside", [True, False], ids=["beside", "in the sweep"])
def test_belady_is_the_same_beside_and_in_the_sweep(tmp_path: Path, beside: bool) -> None:
    folders = [write(tmp_path / "a", "lru", point(8, 300, 700 if beside else None))]
    folders += [] if beside else [write(tmp_path / "b", "belady", point(8, 700))]
    assert rows_of(compare(folders, tmp_path / "out"))["lru"][3] == ("40.00")


def test_seeds_share_a_row_and_knobs_do_not(tmp_path: Path) -> None:
    folders = [write(tmp_path / f"{seed}", "slru", point(8, 300 + 10 * seed), seed=seed) for seed in (0, 1)]
    folders.append(write(tmp_path / "k", "slru", point(8, 500), overrides=["eviction.protected_uses=3"]))
    rows = rows_of(compare(folders, tmp_path / "out"))
    assert rows["slru"][0].startswith("30.50 ± ")
    assert rows["slru eviction.protected_uses=3"][0] == "**50.00**"


def test_sizes_of_one_policy_make_one_curve_and_semantics_two_tables(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / "a", "lru", point(8, 300), overrides=["memory.device_tokens=4096"]),
        write(tmp_path / "b", "lru", point(16, 400), overrides=["memory.device_tokens=8192"]),
        write(tmp_path / "c", "lru", point(8, 200), semantics="prefix"),
    ]
    comparison = compare(folders, tmp_path / "out")
    assert [table.capacities for table in comparison.replays] == [(8, 16), (8,)]
    figures = [path for path in comparison.files if path.suffix == ".png"]
    assert len(figures) == 2
    assert all(imread(path).std() > 0.01 for path in figures)


def test_the_csv_has_a_row_for_each_policy_and_capacity(tmp_path: Path) -> None:
    compare([write(tmp_path / "a", "lru", point(8, 300, 700), point(16, 500, 800))], tmp_path / "out", figures=False)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/comparison.csv").read_text())))
    found = [(row["system"], row["replayed_capacity_pages"], row["replayed_hit_ratio"]) for row in rows]
    assert found[:4] == [("lru", "8", "0.3"), ("lru", "16", "0.5"), ("belady", "8", "0.7"), ("belady", "16", "0.8")]
    assert float(rows[0]["replayed_regret_belady"]) == pytest.approx(0.4)
    assert {row["kind"] for row in rows} == {"replayed"}


def test_replays_and_served_runs_share_no_table(make_run: RunMaker, tmp_path: Path) -> None:
    comparison = compare([make_run("vllm"), write(tmp_path / "a", "lru", point(8, 300))], tmp_path / "out")
    assert (len(comparison.tables), len(comparison.replays)) == (1, 1)
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(comparison)
    text = console.export_text()
    assert "TTFT p99" in text
    assert "infinite cache" in text


def test_a_run_of_a_task_with_its_own_report_makes_no_table(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "lru", point(8, 300))
    summary = json.loads((folder / "summary.json").read_text())
    del summary["replay"]
    (folder / "summary.json").write_text(json.dumps(summary))
    comparison = compare([folder], tmp_path / "out")
    assert (comparison.tables, comparison.replays, comparison.problems, comparison.files) == ((), (), (), ())
    assert not list((tmp_path / "out").iterdir())
