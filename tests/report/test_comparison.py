"""Tables say what may be compared, what is best and what is only noise."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from kvarena.framework.report import Comparison, RunError, compare, load_run
from kvarena.framework.report.rows import differs, estimate, group_rows
from kvarena.framework.report.table import METRICS

RunMaker = Callable[..., Path]

BELADY = {"eviction": {"name": "belady", "distribution": "kvarena", "version": "0.1.0", "oracle": True}}


def _shown(comparison: Comparison, width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(comparison)
    return console.export_text()


def _row(markdown: str, label: str) -> list[str]:
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {label} |"))  # of the first table
    return [cell.strip() for cell in line.strip("|").split("|")]


def _compare(folders: list[Path], out: Path) -> tuple[Comparison, str, list[dict[str, str]]]:
    comparison = compare(folders, out, figures=False)
    rows = list(csv.DictReader(io.StringIO((out / "comparison.csv").read_text())))
    return comparison, (out / "comparison.md").read_text(), rows


def test_best_is_bold_and_units_are_in_the_header(make_run: RunMaker, tmp_path: Path) -> None:
    folders = [make_run("vllm_stateless", hit=0.0), make_run("vllm", hit=0.8)]
    comparison, markdown, rows = _compare(folders, tmp_path / "out")
    assert "| system | TTFT p50 [ms] | TTFT p99 [ms] | normalized latency [ms/token] |" in markdown
    assert (
        "throughput [requests/s] | throughput [tokens/s] | hit ratio [% of tokens] | recomputed [tokens] |" in markdown
    )
    slow, fast = _row(markdown, "vllm_stateless"), _row(markdown, "vllm")
    for column in (1, 2, 3, 6, 7):
        assert fast[column].startswith("**"), (column, fast)
        assert not slow[column].startswith("**")
    assert slow[6] == "0"
    summary = load_run(folders[1]).summary
    assert float(rows[1]["measured_ttft_p50_s"]) == summary["latency"]["ttft_s"]["p50"]
    assert fast[1] == f"**{summary['latency']['ttft_s']['p50'] * 1e3:.1f}**"
    assert "differences are not tested" in markdown
    text = _shown(comparison)
    for part in ("vllm_stateless", "TTFT p99", "normalized latency", "requests/s", "n = 60 requests per run, seed 0"):
        assert part in text


def test_measured_and_simulated_never_share_a_table_or_a_column(make_run: RunMaker, tmp_path: Path) -> None:
    folders = [make_run("vllm"), make_run("vllm", folder="sim", backend="simulated")]
    comparison, markdown, rows = _compare(folders, tmp_path / "out")
    assert [table.setting.kind for table in comparison.tables] == ["measured", "simulated"]
    assert "(measured)" in markdown
    assert "(simulated)" in markdown
    for row, kind, other in ((rows[0], "measured", "simulated"), (rows[1], "simulated", "measured")):
        assert row[f"{kind}_ttft_p50_s"] != ""
        assert all(row[f"{other}_{metric.name}"] == "" for metric in METRICS)


@pytest.mark.parametrize("key", ["workload", "model", "hardware"])
def test_another_setting_is_another_table(make_run: RunMaker, tmp_path: Path, key: str) -> None:
    folders = [make_run("vllm"), make_run("vllm", folder="b", **{key: "other"})]
    assert len(_compare(folders, tmp_path / "out")[0].tables) == 2


def test_oracles_are_marked_and_never_best(make_run: RunMaker, tmp_path: Path) -> None:
    folders = [
        make_run("vllm+eviction=belady", hit=1.0, policies=BELADY),
        make_run("vllm", hit=0.5),
        make_run("pensieve", hit=0.6),
    ]
    _, markdown, rows = _compare(folders, tmp_path / "out")
    oracle = _row(markdown, "vllm+eviction=belady (oracle)")
    assert not any("**" in cell or "≈" in cell for cell in oracle)
    assert _row(markdown, "pensieve")[6].startswith("**")
    assert [row["system"] for row in rows] == ["vllm", "pensieve", "vllm+eviction=belady"]
    assert "oracle: sees the future" in rows[2]["notes"]


def test_ablations_do_not_merge_and_seeds_do(make_run: RunMaker, tmp_path: Path) -> None:
    folders = [make_run(system, seed) for seed in (0, 1, 2) for system in ("vllm", "vllm+eviction=fifo")]
    comparison, markdown, rows = _compare(folders, tmp_path / "out")
    assert [(row["system"], row["seeds"]) for row in rows] == [("vllm", "0 1 2"), ("vllm+eviction=fifo", "0 1 2")]
    assert "±" in _row(markdown, "vllm")[1]
    assert "seeds 0, 1, 2" in markdown
    found = [run.figure("latency", "ttft_s", "p50") for run in comparison.tables[0].rows[0].runs]
    assert float(rows[0]["measured_ttft_p50_s"]) == pytest.approx(sum(found) / 3)  # type: ignore[arg-type]


def test_equal_systems_have_no_best(make_run: RunMaker, tmp_path: Path) -> None:
    _, markdown, _ = _compare([make_run("vllm"), make_run("other")], tmp_path / "out")
    assert "**" not in "".join(_row(markdown, "vllm") + _row(markdown, "other"))


def test_a_difference_within_the_noise_is_said(make_run: RunMaker, tmp_path: Path) -> None:
    noisy = [make_run("noisy", seed, speed) for seed, speed in enumerate((1.4, 0.7, 1.0))]
    steady = [make_run("steady", seed, 1.3) for seed in range(3)]
    clear = [make_run("slow", seed, 0.4) for seed in range(3)]
    _, markdown, _ = _compare([*noisy, *steady, *clear], tmp_path / "out")
    assert _row(markdown, "steady")[1].startswith("**")
    assert _row(markdown, "noisy")[1].endswith("≈")
    assert "≈" not in _row(markdown, "slow")[1]


def test_failed_and_saturated_runs_are_said_and_not_ranked(make_run: RunMaker, tmp_path: Path) -> None:
    saturated = make_run("saturated", speed=3.0)
    summary = json.loads((saturated / "summary.json").read_text())
    summary["run"]["saturated"] = True
    (saturated / "summary.json").write_text(json.dumps(summary))
    folders = [
        make_run("broken", speed=9.0, hit=1.0, status="failed"),
        saturated,
        make_run("vllm"),
        make_run("slow", speed=0.5),
    ]
    comparison, markdown, _ = _compare(folders, tmp_path / "out")
    assert not any("**" in cell for cell in _row(markdown, "broken (failed)"))
    assert not any("**" in cell for cell in _row(markdown, "saturated (saturated)")[1:4])
    assert _row(markdown, "vllm")[1].startswith("**")
    text = _shown(comparison)
    assert "broken: 1 of 1 runs failed: not ranked" in text
    assert "saturated: saturated: the queue grew" in text


def test_faults_of_the_tiers_are_noted(make_run: RunMaker, tmp_path: Path) -> None:
    folders = [make_run("pensieve", seed) for seed in (0, 1)]
    for folder, faults in zip(folders, ({"checksum": 2, "full": 0}, {"checksum": 1, "stalled": 4}), strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        summary["cache"]["faults"] = faults
        (folder / "summary.json").write_text(json.dumps(summary))
    comparison, markdown, rows = _compare([*folders, make_run("vllm"), make_run("vllm", 1)], tmp_path / "out")
    note = "faults of the memory tiers (checksum 3, stalled 4); no answer changed"
    assert f"- pensieve: {note}" in markdown
    assert [row["notes"] for row in rows] == [note, ""]
    assert f"pensieve: {note}" in _shown(comparison)


def test_unreadable_runs_are_problems_not_errors(make_run: RunMaker, tmp_path: Path) -> None:
    torn, alien, empty = (make_run(name) for name in ("torn", "alien", "empty"))
    (torn / "summary.json").write_text('{"schema": 1')
    (alien / "summary.json").write_text('{"schema": 2, "run": {}}')
    (empty / "summary.json").unlink()
    comparison, markdown, rows = _compare([torn, alien, empty, make_run("vllm")], tmp_path / "out")
    assert [row["system"] for row in rows] == ["vllm"]
    assert "not readable" in comparison.problems[0]
    assert comparison.problems[1].endswith("schema 2, expected 1")
    assert comparison.problems[2].endswith("empty-0: no summary.json: the run did not finish")
    assert "## Problems" in markdown
    assert "did not finish" in _shown(comparison)


def test_no_run_at_all(tmp_path: Path) -> None:
    comparison = compare([tmp_path / "gone"], tmp_path / "out")
    assert comparison.tables == ()
    assert len(comparison.problems) == 1
    assert (tmp_path / "out" / "comparison.csv").read_text().startswith("kind,workload,")


def test_different_requests_are_not_comparable(make_run: RunMaker, tmp_path: Path) -> None:
    comparison = compare([make_run("vllm", count=60), make_run("pensieve", count=50)], tmp_path / "out", figures=False)
    assert any("vllm and pensieve served different requests" in problem for problem in comparison.problems)
    assert compare([make_run("a"), make_run("b")], tmp_path / "out", figures=False).problems == ()


def test_two_runs_of_one_seed_get_rows_of_their_own(make_run: RunMaker) -> None:
    runs = [load_run(make_run("vllm", folder=name)) for name in ("small", "large")]
    (rows,) = group_rows(runs).values()
    assert [row.label for row in rows] == ["vllm [small]", "vllm [large]"]


def test_estimate_by_hand() -> None:
    assert estimate([5.0]).half_width is None
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.303 * (1 / 3) ** 0.5)


def test_differences_are_paired_by_seed() -> None:
    assert differs({0: 1.0}, {0: 2.0}) is None
    assert differs({0: 1.0, 1: 5.0, 2: 9.0}, {0: 1.1, 1: 5.1, 2: 9.1}) is True
    assert differs({0: 1.0, 1: 5.0, 2: 9.0}, {0: 5.0, 1: 1.0, 2: 9.5}) is False


def test_a_missing_parquet_file_costs_the_figures_only(make_run: RunMaker, tmp_path: Path) -> None:
    run = make_run("vllm")
    (run / "requests.parquet").unlink()
    with pytest.raises(RunError, match=r"requests\.parquet: not readable"):
        load_run(run).ttft_s()
    comparison = compare([run], tmp_path / "out")
    assert len(comparison.tables) == 1
    assert "no figures for" in comparison.problems[0]


def test_a_run_that_failed_before_it_served_is_a_problem_with_its_error(make_run: RunMaker, tmp_path: Path) -> None:
    failed = tmp_path / "broken"
    failed.mkdir()
    known = {
        "seed": 1,
        "backend": "torch",
        "system": "pensieve",
        "workload": None,
        "model": "tiny",
        "hardware": "local",
    }
    run = known | {"status": "failed", "error": "no room on the device", "version": "0.1.0", "policies": {}}
    (failed / "summary.json").write_text(json.dumps({"schema": 1, "run": run}))
    comparison, markdown, rows = _compare([failed, make_run("vllm")], tmp_path / "out")
    assert [row["system"] for row in rows] == ["vllm"]
    assert comparison.problems == (f"pensieve, seed 1: failed: no room on the device ({failed})",)
    assert "no room on the device" in markdown
    run["workload"] = "synthetic_chat"  # as far as it is known, it belongs to the same table
    (failed / "summary.json").write_text(json.dumps({"schema": 1, "run": run}))
    comparison, markdown, rows = _compare([failed, make_run("vllm")], tmp_path / "out")
    assert set(_row(markdown, "pensieve (failed)")[1:]) == {"-"}
    assert "n = 60 requests per run" in markdown


def test_a_narrow_terminal_shows_every_column_whole(make_run: RunMaker, tmp_path: Path) -> None:
    folders = [
        make_run(system, seed, hit=hit) for system, hit in (("vllm_stateless", 0), ("vllm", 0.7)) for seed in (0, 1)
    ]
    text = _shown(compare(folders, tmp_path / "out", figures=False), width=80)
    assert "…" not in text
    assert all(part in text for part in ("normalized", "ms/token", "requests/s", "recomputed", "vllm_stateless"))
    assert "vllm_stateless  " in text
