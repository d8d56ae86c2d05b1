"""Figures are drawn from the run folders, and one system looks the same in all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from kvarena.framework.report import compare, load_run
from kvarena.framework.report.drawing import spread
from kvarena.framework.report.figures import _medians_by_turn, _ttft_cdf
from kvarena.framework.report.numbers import aligned, count_unit, share, short, time_unit
from kvarena.framework.report.rows import group_rows
from kvarena.framework.report.style import look

RunMaker = Callable[..., Path]

SYSTEMS = (
    "vllm_stateless", "vllm", "vllm_offload", "sglang_hicache", "pensieve_gpu", "pensieve", "cachedattention", "h2o",
    "streaming_llm", "memserve", "mooncake",
)  # fmt: skip


def _has_colour(path: Path, colour: str) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return bool((np.abs(imread(path)[..., :3] - wanted).max(axis=-1) < 0.01).sum() > 50)


def test_figures_are_written_in_the_systems_colours(make_run: RunMaker, tmp_path: Path) -> None:
    folders = [make_run(system, seed, hit=hit) for system, hit in (("vllm", 0.4), ("pensieve", 0.9)) for seed in (0, 1)]
    comparison = compare(folders, tmp_path / "out")
    drawn = [path for path in comparison.files if path.suffix == ".png"]
    assert sorted(path.name for path in drawn) == ["reusable_tokens.png", "ttft_by_turn.png", "ttft_cdf.png"]
    vectors = ["improvement.svg", "memory_over_time.svg", "reuse_by_turn.svg", "where_time_went.svg"]
    assert sorted(path.name for path in comparison.files if path.suffix == ".svg") == vectors
    for path in drawn:
        assert imread(path).shape[1] > 1000
        assert all(_has_colour(path, look(system).colour) for system in ("vllm", "pensieve"))
        assert not _has_colour(path, look("cachedattention").colour)
    assert "![ttft_cdf](figures/ttft_cdf.png)" in (tmp_path / "out" / "comparison.md").read_text()


def test_two_settings_do_not_share_a_file(make_run: RunMaker, tmp_path: Path) -> None:
    compare([make_run("vllm"), make_run("vllm", folder="b", backend="simulated")], tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert "ttft_cdf_synthetic-chat-tiny-on-local-simulated.png" in names
    assert len(names) == 12


def test_medians_by_turn_are_those_of_the_records(make_run: RunMaker) -> None:
    run = load_run(make_run("vllm", count=200))
    (rows,) = group_rows([run]).values()
    turns, medians = _medians_by_turn(rows[0])
    told = {entry["turn"] + 1: entry["ttft_s"]["p50"] for entry in run.summary["latency"]["by_turn"]}
    assert dict(zip(turns.tolist(), medians[0].tolist(), strict=True)) == pytest.approx(told)


def test_every_system_has_its_own_look() -> None:
    looks = [look(system) for system in SYSTEMS]
    assert len(set(looks)) == len(SYSTEMS)
    assert {found.line for found in looks} == {"-"}
    assert look("vllm+eviction=fifo") == look("vllm+eviction=fifo")
    assert look("vllm+eviction=fifo") != look("vllm+eviction=lfu")
    assert look("vllm+eviction=fifo").line != "-"


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.1)), min_size=1, max_size=12))
def test_labels_never_overlap(labels: list[tuple[float, float]]) -> None:
    heights, gaps = sorted(height for height, _ in labels), [gap for _, gap in labels[1:]]
    moved = spread(heights, gaps)
    assert all(high - low >= gap - 1e-9 for (low, high), gap in zip(itertools.pairwise(moved), gaps, strict=True))
    assert max(moved) <= 1


def test_many_long_names_are_drawn_apart_and_the_rest_grey(make_run: RunMaker) -> None:
    labels = [f"vllm+eviction=policy_{i}+prefetch=layer{i}" for i in range(14)]
    runs = [load_run(make_run(label, speed=1 + i, count=20, folder=str(i))) for i, label in enumerate(labels)]
    (rows,) = group_rows(runs).values()
    figure = _ttft_cdf(rows)
    boxes = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    named = [text for text in boxes if text.startswith("vllm")]
    assert {text.split("+")[1].strip() for text in named} == {f"eviction=policy_{i}" for i in range(2, 14)}
    assert "grey: 2 others" in boxes  # the two slowest
    assert not any(boxes[one].overlaps(boxes[other]) for one, other in itertools.combinations(named, 2))


def test_numbers_are_short() -> None:
    values = (0, 0.00001234, 0.01234, 0.5, 1.234, 9.999, 12.34, 123.4, 12345.6)
    assert [short(value) for value in values] == [
        "0", "1.23e-05", "0.0123", "0.500", "1.23", "10.0", "12.3", "123", "12,346"
    ]  # fmt: skip
    assert [share(value) for value in (0, 0.005, 0.1234, 1)] == ["0%", "0.5%", "12.3%", "100%"]
    assert aligned(0.1234, "12.3") == "0.1"
    assert aligned(12.34, "1,234") == "12"


def test_units_follow_the_column() -> None:
    counts = [count_unit([size], "tokens") for size in (99_000, 870_403, 3e8)]
    assert [unit.name for unit in counts] == ["tokens", "k tokens", "M tokens"]
    assert short(870_403 * counts[1].factor) == "870"
    assert (time_unit([0.5, 3]).name, time_unit([0.5, 30], "/token").name) == ("ms", "s/token")
