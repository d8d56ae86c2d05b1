"""Tables and curves of quality runs, made from invented turns."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from kvarena.framework.report import Comparison, compare, load_run
from kvarena.framework.report.batches import batch_tables
from kvarena.framework.report.quality import ALL, FULL, quality_tables
from kvarena.framework.report.style import look

sys.path.insert(0, str(Path(__file__).parent))
from quality_runs import measured_turn, turns, write_quality

BUDGETS = (0.1, 0.5, 1.0)


def sweep(tmp_path: Path, seeds: int = 2, policies: dict[str, float] | None = None) -> list[Path]:
    skills = policies or {"h2o": 0.9, "window": 0.2, "random": 0.0, "future": 1.0}
    return [
        write_quality(
            tmp_path / f"{policy}-{seed}", policy, {budget: turns(skill, budget, seed) for budget in BUDGETS}, seed
        )
        for policy, skill in skills.items()
        for seed in range(seeds)
    ]


def rows_of(comparison: Comparison, number: int = 0) -> dict[str, list[str]]:
    part = comparison.markdown().split("## ")[1 + number]
    cells = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("| ")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}


def test_a_table_by_budget_ranks_policies_and_marks_what_beats_chance(tmp_path: Path) -> None:
    comparison = compare(sweep(tmp_path), tmp_path / "out", figures=False)
    rows = rows_of(comparison)
    assert rows["policy"] == ["10%", "50%", "100%"]
    assert list(rows)[2:] == ["full cache", "h2o", "window", "random", "future (oracle)"]
    assert rows["full cache"] == ["100.0 ± 0.0", "", ""]
    assert rows["h2o"][0].startswith("**")
    assert rows["h2o"][0].endswith("↑**")
    assert rows["h2o"][2] == "100.0 ± 0.0"
    assert "↑" not in rows["random"][0]
    assert not any("**" in cell for cell in rows["future (oracle)"])
    kl = rows_of(comparison, 1)
    assert kl["h2o"][0].endswith("↑**")  # less is better
    assert "n = 192 episodes, seeds 0, 1" in comparison.markdown()


def test_figures_are_those_of_the_rows(tmp_path: Path) -> None:
    right = [measured_turn("passkey", n, n < 3, 0.5 if n < 3 else 1.5, 0.25) for n in range(4)]
    ((table,), problems) = quality_tables([load_run(write_quality(tmp_path / "a", "tova", {None: right}))])
    row = table.row("tova", None)
    assert row is not None
    assert problems == []
    found = {name: row.interval(ALL, name) for name in ("accuracy", "kl_nats", "kv_share", "bits_per_token", "recall")}
    means = {name: one.mean for name, one in found.items() if one is not None}
    assert means == pytest.approx(
        {"accuracy": 0.75, "kl_nats": 0.75, "kv_share": 0.25, "bits_per_token": (0.3 + 6) / 4, "recall": 0.925}
    )
    full = table.row(FULL, None)
    assert full is not None
    assert [getattr(full.interval(ALL, name), "mean", None) for name in ("accuracy", "bits_per_token", "kl_nats")] == [
        *(1.0, pytest.approx(0.01), None)
    ]


def test_one_size_shows_all_figures_of_each_policy(tmp_path: Path) -> None:
    folders = [
        write_quality(tmp_path / "a", "h2o", {None: turns(0.9, 0.2, 0)}),
        write_quality(tmp_path / "b", "tova", {None: turns(0.5, 0.2, 0)}),
    ]
    rows = rows_of(compare(folders, tmp_path / "out"))
    assert rows["policy"][:2] == ["K/V [% of full]", "passkey [%]"]
    assert rows["policy"][-4:] == ["KL [nats]", "top-1 [% equal]", "attention error [%]", "recall [% of top keys]"]
    assert rows["h2o"][0] == "20.0"
    assert not (tmp_path / "out/figures").exists()


def test_running_text_is_no_question(tmp_path: Path) -> None:
    points = {budget: turns(0.5, budget, 0, ("perplexity", "passkey")) for budget in BUDGETS}
    comparison = compare([write_quality(tmp_path / "a", "h2o", points)], tmp_path / "out")
    ((table,), _) = (comparison.quality, None)
    row = table.row("h2o", 0.5)
    assert row is not None
    assert {unit[1] for unit in row.values(ALL, "kl_nats")} == {"passkey"}
    assert "text, perplexity [bits/token]" in comparison.markdown()


def test_what_differs_in_more_than_the_policy_is_told_apart(tmp_path: Path) -> None:
    points = {None: turns(0.5, 0.2, 0)}
    folders = [
        write_quality(tmp_path / "a", "h2o", points, system="h2o"),
        write_quality(tmp_path / "b", "h2o", points, system="pensieve+truncation=h2o"),
        write_quality(tmp_path / "c", "snapkv", points, overrides=["truncation.window=8"]),
        write_quality(tmp_path / "d", "tova", points, overrides=["truncation.counts_metadata=true"]),
        write_quality(tmp_path / "e", "tova", points, overrides=["task.episodes=3"]),
    ]
    tables = compare(folders, tmp_path / "out", figures=False).quality
    assert [table.labels[1:] for table in tables] == [
        ["h2o on h2o", "h2o on pensieve", "snapkv window=8", "tova"],
        ["tova"],
    ]


def test_a_policy_with_a_size_of_its_own_stands_beside(tmp_path: Path) -> None:
    folders = [*sweep(tmp_path, 1), write_quality(tmp_path / "corm", "corm", {None: turns(0.6, 0.3, 0)})]
    comparison = compare(folders, tmp_path / "out")
    rows = rows_of(comparison)
    assert rows["policy"] == ["10%", "50%", "100%", "own size"]
    assert rows["corm"][:3] == ["-", "-", "-"]
    assert float(rows["corm"][3].split()[0]) > 0


def test_the_figures_show_every_policy_in_its_colour(tmp_path: Path) -> None:
    out = tmp_path / "out"
    comparison = compare(sweep(tmp_path), out)
    drawn = {path.stem: path for path in comparison.files if path.suffix == ".png"}
    assert set(drawn) == {"quality_accuracy", "quality_kl", "quality_attention"}
    assert "![quality_kl](figures/quality_kl.png)" in (out / "comparison.md").read_text()
    image = imread(drawn["quality_accuracy"])[..., :3]
    for policy in ("h2o", "window"):
        wanted = np.array([int(look(policy).colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(image - wanted).max(axis=-1) < 0.01).sum() > 200


def test_the_csv_has_a_row_for_each_policy_budget_and_task(tmp_path: Path) -> None:
    compare(sweep(tmp_path, 1), tmp_path / "out", figures=False)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/comparison.csv").read_text())))
    assert len(rows) == (1 + 4 * 3) * 7
    found = [r for r in rows if (r["system"], r["quality_budget"], r["quality_task"]) == ("h2o", "0.5", "copy")]
    assert len(found) == 1
    assert float(found[0]["quality_accuracy_low"]) <= float(found[0]["quality_accuracy"])
    assert float(found[0]["quality_kv_share"]) == pytest.approx(0.5)


def test_a_torn_file_is_a_problem_that_is_reported(tmp_path: Path) -> None:
    (folder,) = sweep(tmp_path, 1, {"h2o": 0.5})
    (folder / "quality.parquet").write_bytes(b"torn")
    comparison = compare([folder], tmp_path / "out")
    assert comparison.quality == ()
    assert "quality.parquet: not readable" in comparison.problems[0]


def test_a_terminal_shows_the_tables(tmp_path: Path) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(compare(sweep(tmp_path, 1), tmp_path / "out", figures=False))
    text = console.export_text()
    assert "future (oracle)" in text
    assert "better, worse than tokens by lot" in " ".join(text.split())


# --- throughput against the conversations at once -----------------------------------------------------------------


def served(folder: Path, system: str, batch: int, speed: float, memory: int, **more: object) -> Path:
    folder.mkdir()
    run = {
        "seed": 0, "backend": "torch", "system": system, "workload": "rounds", "model": "peers", "hardware": "local",
        "status": "ok", "version": "0.1.0", "overrides": [f"workload.limit={batch}", "workload.turns=1"], **more,
    }  # fmt: skip
    content = {
        "schema": 1,
        "run": run,
        "throughput": {"output_tokens_per_s": speed},
        "device": {"peak_kv_bytes": memory},
    }
    (folder / "summary.json").write_text(json.dumps(content))
    return folder


def test_throughput_and_memory_by_batch(tmp_path: Path) -> None:
    folders = [
        served(tmp_path / f"{system}{batch}", system, batch, speed * batch, 2**30 * batch)
        for system, speed in (("vllm", 10.0), ("h2o", 25.0))
        for batch in (1, 4, 16)
    ]
    (table,) = batch_tables([load_run(folder) for folder in folders])
    assert table.setting.knobs == "workload.turns=1"
    assert dict(table.rows())["16"] == ["160", "16.0", "400", "16.0"]
    comparison = compare(folders, tmp_path / "out")
    assert "throughput_by_batch" in [path.stem for path in comparison.files]
    assert "| 4 | 40.0 | 4.00 | 100 | 4.00 |" in comparison.markdown()
    assert batch_tables([load_run(folder) for folder in folders[:1]]) == []
