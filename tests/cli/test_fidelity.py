"""``task=fidelity`` from the command line: its files, its verdicts, and bad input in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
QUICK = (
    *("experiment=fidelity", "tracking=none", "task.seconds=0.1", "task.rounds=1", "workload.limit=4"),
    *("task.limits.tokens=32", "task.limits.context=64", "task.limits.sequences=2", "workload.rate=20"),
    *("model.num_layers=2", "model.hidden_size=64", "model.intermediate_size=128", "model.vocab_size=512"),
    *("model.num_heads=4", "model.num_kv_heads=2", "workload.input_scale=1", "workload.max_turns=4"),
)


def test_real_runs_and_simulations_are_compared(kvarena: Run, tmp_path: Path) -> None:
    status, out, err = kvarena(*QUICK, "task.systems=[vllm_stateless,pensieve]")
    assert status == 0, err
    (folder,) = (tmp_path / "runs/fidelity").iterdir()
    for kind in ("real/vllm_stateless/0", "real/pensieve/0", "simulated/pensieve"):
        run = json.loads((folder / kind / "summary.json").read_text())["run"]
        assert run["backend"] == ("simulated" if kind.startswith("simulated") else "torch")
        assert run["system"] in kind
        assert (folder / kind / "requests.parquet").is_file()
    assert (folder / "tables/pensieve/operators.parquet").is_file()
    assert (folder / "fidelity.csv").is_file()
    assert (folder / "figures/fidelity.png").stat().st_size > 10_000
    section = json.loads((folder / "summary.json").read_text())["fidelity"]
    assert {row["system"] for row in section["rows"]} == {"vllm_stateless", "pensieve"}
    assert {len(row["real"]) for row in section["rows"]} == {1}
    hits = [row for row in section["rows"] if row["metric"] == "hit ratio" and row["system"] == "vllm_stateless"]
    assert [(row["real"], row["simulated"]) for row in hits] == [([0.0], 0.0)]
    text = (folder / "fidelity.md").read_text()
    assert "TTFT mean" in text and "pensieve" in text
    assert "figures: " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task.systems=[pensive]"], "unknown system 'pensive'"),
        (["task.systems=[vllm,vllm]"], "expected each of them once"),
        (["task.systems=[]"], "there is nothing to compare"),
        (["task.rounds=0"], "rounds is 0"),
        (["eviction=fifo"], "eviction=fifo would change none of its runs"),
        (["task.vllm=nowhere"], "task.vllm: "),
        (["memory.device_tokens=64", "workload.rate=null"], "the device tier holds 64"),
    ],
)
def test_what_is_wrong_is_one_line(kvarena: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    status, _, err = kvarena(*QUICK, *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_simulated_backend_has_nothing_to_be_held_against(kvarena: Run) -> None:
    status, _, err = kvarena("task=fidelity", "backend=simulated", "tracking=none", "task.systems=[vllm]")
    assert status == 2
    assert "task=fidelity measures a model that runs" in err
