"""``task.quality_sample``: what is served, judged in the same run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

Run = Callable[..., tuple[int, str, str]]
SMALL = (
    *("backend=torch", "model=tiny", "model.num_layers=2", "model.hidden_size=32", "model.intermediate_size=48"),
    *("model.num_heads=4", "model.num_kv_heads=2", "model.head_dim=8", "model.vocab_size=256"),
    *("model.max_positions=512", "memory.device_tokens=2048", "memory.page_size=4", "tracking=none"),
)
CHATS = (
    *("workload=synthetic_chat", "workload.limit=4", "workload.max_turns=3", "workload.rate=null"),
    *("workload.input_scale=0.5", "workload.output_scale=0.05", "workload.think_time_s=0.01"),
)


def summaries(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """By system, the newest last."""
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("summary.json"))]
    return {content["run"]["system"]: content for content in found}


def mean(section: dict[str, Any], name: str) -> float:
    value = section[name]["mean"]
    assert isinstance(value, float)
    return value


@pytest.mark.e2e
def test_two_systems_side_by_side(kvarena: Run, tmp_path: Path) -> None:
    """A lossless system differs from the full cache in rounding only; H2O with little memory in much."""
    sweep = ("-m", "system=vllm,h2o", "task.quality_sample=0.5", "workload.warmup=2")
    status, out, error = kvarena(*SMALL, *CHATS, *sweep)
    assert status == 0, error
    runs = summaries(tmp_path)
    plain, narrow = runs["vllm"]["quality"], runs["h2o"]["quality"]
    assert plain["conversations"] == narrow["conversations"] == 2
    assert (plain["share"], plain["turns"]) == (0.5, narrow["turns"])
    assert abs(mean(plain, "kl_nats")) < 1e-9 < mean(narrow, "kl_nats")
    assert mean(plain, "bits_per_token") == pytest.approx(mean(plain, "reference_bits_per_token"), abs=1e-5)
    assert mean(plain, "perplexity") == pytest.approx(2 ** mean(plain, "bits_per_token"))
    assert mean(plain, "top1") == 1.0
    assert sum(part["tokens"] for part in narrow["by_turn"]) == narrow["tokens"]
    for path in tmp_path.rglob("quality.parquet"):
        assert len(rows := pq.read_table(path).to_pylist()) in (plain["tokens"], narrow["tokens"])
        assert {row["task"] for row in rows} == {"served"}
        assert all(row["chosen"] == row["token"] for row in rows)  # the model's own replies
    assert "quality of what was served" in out
    assert list(tmp_path.rglob("figures/quality_served.png"))
    (table,) = tmp_path.rglob("comparison.md")
    assert "by the full cache [bits/token]" in table.read_text()


def test_replies_of_the_workload_are_judged_as_they_stand(kvarena: Run, tmp_path: Path) -> None:
    """So that both runs predict a token that the model would not have chosen."""
    path = tmp_path / "chats.jsonl"
    turns = [{"prompt_ids": [1, 2, 3, 4, 5], "reply_ids": [9, 8, 7]}, {"prompt_ids": [6], "reply_ids": [5, 5]}]
    path.write_text("".join(json.dumps({"turns": turns}) + "\n" for _ in range(2)))
    status, _, error = kvarena(*SMALL, "workload=jsonl", f"workload.path={path}", "task.quality_sample=1")
    assert status == 0, error
    quality = summaries(tmp_path)["vllm"]["quality"]
    assert quality["conversations"] == 2
    assert abs(mean(quality, "kl_nats")) < 1e-9
    (rows,) = [pq.read_table(path).to_pylist() for path in tmp_path.rglob("quality.parquet")]
    assert any(row["chosen"] != row["token"] for row in rows)
    assert [row["context_tokens"] for row in rows] == [5, 6, 7, 9, 10] * 2
    assert quality["by_turn"][1]["tokens"] == 4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("backend=simulated", "task.quality_sample=0.5"), "backend=simulated has no replies to judge"),
        (("task.quality_sample=1.5",), "quality_sample is 1.5, expected a share of the conversations, 0 to 1"),
    ],
)
def test_what_cannot_be_judged_is_refused(kvarena: Run, tmp_path: Path, words: Sequence[str], expected: str) -> None:
    status, _, error = kvarena(*words, "tracking=none", "model=tiny")
    assert status == 2
    assert expected in error
    assert not list(tmp_path.rglob("summary.json"))
