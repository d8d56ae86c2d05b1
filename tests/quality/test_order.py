"""The order that must hold on the shipped models, over five seeds: the oracle, the policies, tokens by lot; and what
papers report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvarena.framework.cli import main
from kvarena.framework.quality.intervals import Interval
from kvarena.framework.report.quality import ALL, FULL, TEXT, QualityRow, QualityTable, quality_tables
from kvarena.framework.report.runs import load_run
from kvarena.policies.truncation.knorm import KNorm
from kvarena.policies.truncation.pyramidkv import PyramidKV

pytestmark = pytest.mark.e2e

# These may be as bad as lots on the retrieval model, or worse: test_why_some_are_no_better_than_lots says why.
BLIND = ("knorm", "pyramidkv", "window", "streaming_llm", "buzz")
SEEING = ("h2o", "snapkv", "keydiff", "tova", "adakv")
SMALL = "truncation.window=8"
Sweep = Callable[..., QualityTable]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    def run(variants: list[str], *given: str) -> QualityTable:
        monkeypatch.chdir(tmp_path)
        words = ["kvarena", "-m", "task=quality", "tracking=none", f"hydra.sweeper.variants={variants}", *given]
        monkeypatch.setattr("sys.argv", words)
        assert main() == 0
        (folder,) = (tmp_path / "runs/default").iterdir()
        runs = [load_run(job) for job in folder.iterdir() if (job / "summary.json").exists()]
        ((table,), problems) = quality_tables(runs)
        assert problems == []
        return table

    return run


def found(row: QualityRow | None, task: str, measure: str) -> Interval:
    assert row is not None
    interval = row.interval(task, measure)
    assert interval is not None
    return interval


def test_the_oracle_is_above_the_policies_and_they_are_above_lots(sweep: Sweep) -> None:
    plain = [
        f"truncation={name} truncation.counts_metadata=true" for name in ("h2o", "tova", "keydiff", "knorm", "window")
    ]
    windowed = [
        f"truncation={name} truncation.counts_metadata=true {SMALL}" for name in ("snapkv", "adakv", "pyramidkv")
    ]
    moved = [
        "truncation=streaming_llm truncation.counts_metadata=true backend.decoupled=true",
        f"truncation=buzz truncation.counts_metadata=true {SMALL} backend.decoupled=true",
    ]
    ends = [f"truncation={name} truncation.counts_metadata=true" for name in ("random", "future")]
    table = sweep(
        [*plain, *windowed, *moved, *ends],
        *("model=recall", "seed=0,1,2,3,4", "memory.page_size=4", "memory.device_tokens=8192", "task.measures=[]"),
        *("task.episodes=3", "task.questions=4", "task.budgets=[0.3]", "task.tasks=[multi_key,multi_hop,associative]"),
    )
    rows = {row.label.split(" ")[0]: row for row in table.rows if row.label != FULL}
    assert set(rows) == {*BLIND, *SEEING, "random", "future"}
    assert found(table.row(FULL, None), ALL, "accuracy").mean > 0.98
    shares = {name: found(row, ALL, "kv_share").mean for name, row in rows.items()}
    assert max(shares.values()) < 0.34, shares  # equal bytes, but for whole pages
    assert {unit[0] for unit in rows["h2o"].units} == {0, 1, 2, 3, 4}
    for name, row in rows.items():
        if name != "future":
            assert (rows["future"].against(row, ALL, "accuracy") or 0) >= 0, name
            assert (rows["future"].against(row, ALL, "kl_nats") or 0) < 0, name
    for name in SEEING:
        assert (rows[name].against(rows["random"], ALL, "accuracy") or 0) > 0, name
        assert (rows[name].against(rows["random"], ALL, "kl_nats") or 0) < 0, name


def test_h2o_without_recent_tokens_collapses(sweep: Sweep) -> None:
    """Zhang et al., NeurIPS 2023: both halves are needed. Sums of attention alone keep the oldest tokens."""
    table = sweep(
        ["truncation=h2o", "truncation=h2o truncation.recent=0"],
        *("model=bytes", "seed=0,1", "task.episodes=3", "task.lengths=[256]", "task.budgets=[0.2]", "task.measures=[]"),
        "task.tasks=[perplexity]",
    )
    whole, bare = table.row("h2o", 0.2), table.row("h2o recent=0", 0.2)
    assert whole is not None
    assert bare is not None
    full = found(table.row(FULL, None), TEXT, "bits_per_token").mean
    assert found(whole, TEXT, "bits_per_token").mean < full + 0.3
    assert found(bare, TEXT, "bits_per_token").mean > full + 1.0
    assert (bare.against(whole, TEXT, "bits_per_token") or 0) > 1.0


def test_positions_in_the_keys_break_naive_truncation_and_decoupled_ones_do_not(sweep: Sweep) -> None:
    """Gao et al., USENIX ATC 2024, section 4.3.6: text of three windows, the oldest half dropped when one is full."""
    table = sweep(
        ["truncation=oldest_half", "truncation=oldest_half backend.decoupled=true", "truncation=oldest_half_recompute"],
        *("model=bytes", "task.episodes=2", "task.lengths=[1536]", "task.measures=[]", "task.tasks=[perplexity]"),
    )
    bits = {row.label: found(row, TEXT, "bits_per_token").mean for row in table.rows}
    naive, decoupled, recomputed = (
        bits[label] for label in ("oldest_half", "oldest_half decoupled", "oldest_half_recompute")
    )
    assert decoupled == pytest.approx(recomputed, abs=0.05)
    assert naive > recomputed + 0.4


def test_why_some_are_no_better_than_lots(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The retrieval model's keys of evidence have large norms (knorm keeps the small ones), its last layer retrieves
    (pyramidkv starves it), and answers are anywhere (a window holds the last tokens only)."""
    plain, windowed = (" truncation.counts_metadata=true", f" truncation.counts_metadata=true {SMALL}")
    given = (
        *("model=recall", "seed=0,1", "memory.page_size=4", "memory.device_tokens=8192", "task.measures=[]"),
        *("task.episodes=3", "task.questions=4", "task.budgets=[0.3]", "task.tasks=[multi_key,associative]"),
    )
    table = sweep(
        [
            *(f"truncation={name}{plain}" for name in ("random", "knorm", "window")),
            *(f"truncation=pyramidkv{windowed} truncation.beta={beta}" for beta in (1, 2, 20)),
            f"truncation=snapkv{windowed}",
        ],
        *given,
    )
    rows = [row for row in table.rows if row.label != FULL]
    lots, norm, last, snapkv, *pyramids = sorted(rows, key=_order)
    even, steeper, steep = pyramids
    assert (lots.against(norm, ALL, "accuracy") or 0) > 0
    assert (lots.against(last, ALL, "kl_nats") or 0) < 0
    assert even.values(ALL, "kl_nats") == snapkv.values(ALL, "kl_nats")  # no pyramid: SnapKV
    assert (even.against(steeper, ALL, "accuracy") or 0) > 0
    assert (steeper.against(steep, ALL, "accuracy") or 0) > 0

    small, fewer = KNorm.score, PyramidKV.layer_tokens
    monkeypatch.setattr(KNorm, "score", lambda self, view: -small(self, view))
    monkeypatch.setattr(PyramidKV, "layer_tokens", lambda self, *sizes: fewer(self, *sizes)[::-1])
    (tmp_path / "runs").rename(tmp_path / "before")
    turned = sweep([f"truncation=knorm{plain}", f"truncation=pyramidkv{windowed}"], *given)
    large, upright = (row for row in turned.rows if row.label != FULL)
    assert (large.against(lots, ALL, "accuracy") or 0) > 0.5
    assert (upright.against(steep, ALL, "accuracy") or 0) > 0.5


def _order(row: QualityRow) -> tuple[int, str]:
    names = ("random", "knorm", "window", "snapkv", "pyramidkv")
    return names.index(row.label.split(" ")[0]), row.label
