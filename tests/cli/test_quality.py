"""``task=quality`` from the command line, on a model of random weights: everything but accuracy can be told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

Run = Callable[..., tuple[int, str, str]]
MODEL = (
    *("task=quality", "model=tiny", "tracking=none", "model.num_layers=2", "model.hidden_size=32"),
    *("model.intermediate_size=48", "model.num_heads=4", "model.num_kv_heads=2", "model.head_dim=8"),
    *("model.vocab_size=256", "model.max_positions=512", "memory.device_tokens=4096", "memory.page_size=4"),
)
SMALL = (*MODEL, "task.episodes=2", "task.lengths=[64]")


def folder(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "runs/default").iterdir()
    return found


def summary(run: Path) -> dict[str, Any]:
    content = json.loads((run / "summary.json").read_text())
    assert isinstance(content, dict)
    return content


def figure(point: dict[str, Any], name: str, task: str = "") -> float:
    value = (point["tasks"][task] if task else point["all"])[name]["mean"]
    assert isinstance(value, float)
    return value


def test_the_full_cache_differs_from_itself_in_nothing(kvarena: Run, tmp_path: Path) -> None:
    """In chunks and in pages of four, several at once."""
    status, out, _ = kvarena(*SMALL, "system=vllm", "scheduling.max_batched_tokens=48")
    assert status == 0
    found = summary(folder(tmp_path))
    (point,) = found["quality"]["points"]
    assert (found["run"]["task"], found["run"]["workload"], point["truncation"]) == ("quality", "quality", "none")
    assert list(point["tasks"]) == ["passkey", "multi_key", "multi_hop", "associative", "copy", "multi_turn"]
    told = {name: figure(point, name) for name in ("kl_nats", "attention_error", "top1", "recall", "kv_share")}
    assert told == {"kl_nats": 0.0, "attention_error": 0.0, "top1": 1.0, "recall": 1.0, "kv_share": 1.0}
    assert point["all"]["bits_per_token"] == point["all"]["reference_bits_per_token"]
    assert (point["all"]["episodes"], found["workload"]["conversations"]) == (12, 12)
    rows = pq.read_table(folder(tmp_path) / "quality.parquet").to_pylist()
    assert len(rows) == point["all"]["steps"]
    assert all(row["chosen"] == row["reference_chosen"] and row["attention_error_by_layer"] == [0, 0] for row in rows)
    assert "full cache" in out


def test_a_budget_is_what_is_held_and_a_whole_one_is_the_full_cache(kvarena: Run, tmp_path: Path) -> None:
    status, _, _ = kvarena(*SMALL, "system=h2o", "task.budgets=[0.25,1.0]", "task.lengths=[128]")
    assert status == 0
    found = summary(folder(tmp_path))
    quarter, whole = found["quality"]["points"]
    assert (quarter["budget"], whole["budget"]) == (0.25, 1.0)
    assert figure(quarter, "held_tokens") / 128 == pytest.approx(0.25, abs=0.03)
    assert figure(quarter, "kl_nats") > 1e-4
    assert figure(quarter, "recall") < 0.9
    assert figure(quarter, "attention_error") > 0.01
    assert (figure(whole, "kl_nats"), figure(whole, "top1"), figure(whole, "recall")) == (0.0, 1.0, 1.0)
    rows = pq.read_table(folder(tmp_path) / "quality.parquet").to_pylist()
    assert {row["budget"] for row in rows} == {0.25, 1.0}


def test_the_question_may_be_known_before(kvarena: Run, tmp_path: Path) -> None:
    """The first token of the reply then comes before anything leaves, and is not counted."""
    given = ("system=h2o", "task.protocol=query_aware", "task.tasks=[passkey,associative]")
    assert kvarena(*SMALL, *given)[0] == 0
    (point,) = summary(folder(tmp_path))["quality"]["points"]
    assert point["tasks"]["associative"]["kl_nats"] is None
    assert point["tasks"]["passkey"]["kl_nats"]["n"] == 2
    assert point["tasks"]["associative"]["accuracy"]["n"] == 2


def test_an_oracle_knows_the_future_and_is_not_ranked(kvarena: Run, tmp_path: Path) -> None:
    given = ("task.tasks=[multi_key]", "task.episodes=4", "task.lengths=[256]", "truncation=future,random", "seed=0,1")
    status, out, _ = kvarena("-m", *MODEL, *given)
    assert status == 0
    markdown = (folder(tmp_path) / "comparison.md").read_text()
    rows = [line.split("|")[1].strip() for line in markdown.splitlines() if line.startswith("| ")]
    assert rows == ["policy", "---", "full cache", "random", "future (oracle)"]
    assert "n = 8 episodes, seeds 0, 1" in markdown
    recalls = {
        content["run"]["system"]: figure(content["quality"]["points"][0], "recall")
        for content in map(summary, (run for run in folder(tmp_path).iterdir() if (run / "summary.json").exists()))
    }
    assert recalls["vllm+truncation=future"] > recalls["vllm+truncation=random"] + 0.1
    assert "multi_key" in out


def test_a_policy_goes_on_from_its_own_replies_too(kvarena: Run, tmp_path: Path) -> None:
    """Its first wrong token decides either way, so that accuracy is the same; only this run tells its speed."""
    given = ("system=vllm", "task.tasks=[associative]", "task.episodes=8")
    assert kvarena(*SMALL, *given, "task.free_running=true")[0] == 0
    (point,) = summary(folder(tmp_path))["quality"]["points"]
    assert point["speed"]["output_tokens_per_s"] > 0
    assert point["speed"]["peak_kv_bytes"] > 0
    assert figure(point, "accuracy") == summary(folder(tmp_path))["quality"]["reference"]["all"]["accuracy"]["mean"]


BAD = [
    (["task.tasks=[pass_key]"], ["tasks has 'pass_key', which is unknown", "did you mean 'passkey'"]),
    (["task.tasks=[]"], ["tasks is [] and files is []"]),
    (["task.lengths=[16]"], ["lengths is [16]", "at least 32"]),
    (["task.lengths=[64,1024]", "task.episodes=1"], ["task passkey, length 1024", "model=tiny has 512 positions"]),
    (["task.lengths=[256]", "memory.device_tokens=128"], ["length 256", "the device tier holds 128"]),
    (["task.budgets=[0.5]"], ["task.budgets is given, but truncation=none has no knob 'budget_ratio'"]),
    (["task.budgets=[0,0.5]", "system=h2o"], ["budgets is [0.0, 0.5]"]),
    (["task.episodes=0"], ["episodes is 0"]),
    (["task.measures=[recal]"], ["'recal'", "did you mean 'recall'"]),
    (["task.protocol=aware"], ["protocol is 'aware'", "query_aware"]),
    (["task.tasks=[perplexity]"], ["needs text, and model=tiny has no tokenizer"]),
    (["task.files=[/no/such.jsonl]"], ["/no/such.jsonl does not exist"]),
    (["model.vocab_size=97"], ["model=tiny has 97 token ids, expected at least 256"]),
    (["memory.disk_persist=true", "memory.disk_dir=d", "memory.disk_tokens=1024"], ["disk_persist", "empty tiers"]),
]


@pytest.mark.parametrize(("given", "words"), BAD, ids=[" ".join(given) for given, _ in BAD])
def test_bad_input_is_one_line_and_nothing_is_left(
    kvarena: Run, tmp_path: Path, given: list[str], words: list[str]
) -> None:
    chosen = {word.split("=")[0] for word in given}
    base = [word for word in SMALL if word.split("=")[0] not in chosen]
    status, out, err = kvarena(*base, *given)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []


def test_there_must_be_a_model_that_answers(kvarena: Run, tmp_path: Path) -> None:
    simulated = ("task=quality", "backend=simulated", "model=llama-3-8b", "hardware=h100", "tracking=none")
    status, _, err = kvarena(*simulated)
    assert (status, err.count("\n")) == (2, 1)
    assert "task=quality needs a model that answers: choose backend=torch" in err
    status, _, err = kvarena("task=quality", "model=hf", "model.path=/no/such/model", "tracking=none")
    assert (status, err.count("\n")) == (2, 1)
    assert "/no/such/model" in err
    assert list(tmp_path.iterdir()) == []
