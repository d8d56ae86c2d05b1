"""TTFT against the size of a tier: what the figure shows is what the runs say, and only where the size varies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from kvarena.framework.report import compare, load_run
from kvarena.framework.report.sizes import size_panels
from kvarena.framework.report.style import look

RunMaker = Callable[..., Path]


def over_sizes(make_run: RunMaker, key: str = "host", seeds: int = 1, **info: object) -> list[Path]:
    return [
        make_run(system, seed, hit=hit * size / 800, folder=f"{system}-{key}-{size}-{seed}-{len(info)}",
                 overrides=[f"memory.{key}_tokens={size}"], **info)
        for system, hit in (("pensieve", 0.9), ("cachedattention", 0.6))
        for size in (0, 400, 800)
        for seed in range(seeds)
    ]  # fmt: skip


def test_a_curve_is_what_the_summaries_say(make_run: RunMaker) -> None:
    runs = [load_run(folder) for folder in over_sizes(make_run, seeds=2)]
    (panel,) = size_panels(reversed(runs))  # in any order
    assert (panel.tier, panel.setting.knobs) == ("host", "")
    curves = {curve.row.label: curve for curve in panel.curves}
    assert set(curves) == {"pensieve", "cachedattention"}
    curve = curves["pensieve"]
    assert curve.sizes == (0, 400, 800)
    assert curve.p50_s.shape == curve.p99_s.shape == (2, 3)
    told = {(run.info["overrides"][0], run.info["seed"]): run for run in runs if run.label == "pensieve"}
    for seed in (0, 1):
        for i, size in enumerate(curve.sizes):
            ttft_s = told[f"memory.host_tokens={size}", seed].summary["latency"]["ttft_s"]
            assert (curve.p50_s[seed, i], curve.p99_s[seed, i]) == (ttft_s["p50"], ttft_s["p99"])
    assert [run.info["seed"] for run in curve.row.runs] == [0, 1]
    assert all(np.diff(curve.p50_s.mean(axis=0)) < 0)


def test_each_tier_and_each_setting_has_its_own_panel(make_run: RunMaker) -> None:
    folders = [*over_sizes(make_run), *over_sizes(make_run, "disk"), *over_sizes(make_run, backend="simulated")]
    panels = [(panel.tier, panel.setting.kind) for panel in size_panels([load_run(folder) for folder in folders])]
    assert sorted(panels) == [("disk", "measured"), ("host", "measured"), ("host", "simulated")]


@pytest.mark.parametrize("overrides", [[], ["memory.host_tokens=null"], ["memory.host_tokens=64"]])
def test_runs_of_one_size_make_no_panel(make_run: RunMaker, overrides: list[str]) -> None:
    assert list(size_panels([load_run(make_run("pensieve", seed, overrides=overrides)) for seed in (0, 1)])) == []


def test_a_size_that_a_seed_lacks_or_a_failed_run_is_not_drawn(make_run: RunMaker) -> None:
    def run(size: int, seed: int, **info: object) -> Path:
        return make_run("pensieve", seed, folder=f"{size}-{seed}", overrides=[f"memory.host_tokens={size}"], **info)

    torn = [run(0, 0), run(400, 0), run(800, 0), run(0, 1), run(400, 1), run(800, 1, status="failed")]
    (panel,) = size_panels([load_run(folder) for folder in torn])
    (curve,) = panel.curves
    assert curve.sizes == (0, 400, 800)
    assert [run.info["seed"] for run in curve.row.runs] == [0]


def test_the_figure_is_drawn_with_the_comparison(make_run: RunMaker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    comparison = compare(over_sizes(make_run, seeds=2), out)
    path = out / "figures/ttft_by_host_size.png"
    assert path in comparison.files
    assert "![ttft_by_host_size](figures/ttft_by_host_size.png)" in (out / "comparison.md").read_text()
    for system in ("pensieve", "cachedattention"):
        colour = look(system).colour
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(imread(path)[..., :3] - wanted).max(axis=-1) < 0.01).sum() > 50
    assert not list((tmp_path / "out").glob("figures/ttft_by_disk*"))
