"""Runs that judged a sample of what they served, side by side."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from kvarena.framework.quality.results import SERVED, rows, sample_section, write_rows
from kvarena.framework.report import compare
from kvarena.framework.report.quality_samples import draw_samples, rich_samples

sys.path.insert(0, str(Path(__file__).parent))
from quality_runs import measured_turn

RunMaker = Callable[..., Path]


@pytest.fixture
def judged(make_run: RunMaker) -> Callable[..., Path]:
    """``judged(system, kl, seed=0, conversations=6)``: a run that served and judged a sample."""

    def make(system: str, kl: float, seed: int = 0, conversations: int = 6) -> Path:
        folder = make_run(system, seed=seed)
        turns = [measured_turn(SERVED, i, kl < 0.1, kl * (1 + i % 2), 1.0) for i in range(conversations)]
        path = folder / "summary.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "quality": sample_section(turns, 0.5)}))
        write_rows(folder / "quality.parquet", rows(turns, None))
        return folder

    return make


def printed(found: object) -> str:
    out = io.StringIO()
    Console(file=out, width=140).print(found)
    return out.getvalue()


def test_systems_stand_side_by_side(judged: Callable[..., Path], make_run: RunMaker, tmp_path: Path) -> None:
    folders = [judged("vllm", 1e-13), judged("h2o", 0.4), judged("h2o", 0.6, seed=1), make_run("pensieve")]
    found = compare(folders, tmp_path / "out", figures=False)
    (sample,) = found.samples
    assert [one.label for _, one in sample.rows] == ["vllm", "h2o"]
    assert not (found.quality or found.problems)
    lines = {line.split()[0]: line for line in printed(rich_samples(sample, 140)).splitlines() if line.strip()}
    assert "0 ± 0" in lines["vllm"]  # rounding is no difference
    assert "0.750 ± " in lines["h2o"]  # over both seeds: 0.4, 0.8, 0.6, 1.2
    assert "100.0 ± 0.0" in lines["vllm"] and " 0.0 ± 0.0" in lines["h2o"]
    table = list(csv.DictReader(io.StringIO((tmp_path / "out/comparison.csv").read_text())))
    h2o = next(row for row in table if row["system"] == "h2o" and row["quality_task"] == SERVED)
    assert (float(h2o["quality_kl_nats"]), h2o["quality_episodes"]) == (pytest.approx(0.75), "12")
    assert "quality of what was served" in (tmp_path / "out/comparison.md").read_text()


def test_a_figure_needs_two_systems(judged: Callable[..., Path], tmp_path: Path) -> None:
    one = compare([judged("vllm", 1e-13)], tmp_path / "one", figures=False)
    two = compare([judged("h2o", 0.4), judged("tova", 0.2)], tmp_path / "two", figures=False)
    assert not draw_samples(one.samples, tmp_path)
    (drawn,) = draw_samples(two.samples, tmp_path)
    assert drawn.path.name == "quality_served.png" and drawn.path.stat().st_size > 10_000


def test_rows_that_are_missing_are_a_problem_and_nothing_else(judged: Callable[..., Path], tmp_path: Path) -> None:
    folder = judged("h2o", 0.4)
    (folder / "quality.parquet").unlink()
    found = compare([folder], tmp_path / "out", figures=False)
    assert len(found.tables) == 1 and not found.samples
    (problem,) = found.problems
    assert "no quality of what was served" in problem
