"""The comparison with real vLLM: how its files are read, what is written, and the errors on the measured run."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvarena.framework.fidelity.vllm import VllmFidelity, VllmRow, compare_vllm, find_vllm
from kvarena.framework.fidelity.vllm_bench import Latencies, read_bench, read_workload
from kvarena.framework.fidelity.vllm_report import markdown, write_vllm
from kvarena.framework.schema import ConfigError

ROWS = [
    {"arrival_time": 50.0, "queued_ts": 10.1, "first_token_ts": 10.3, "last_token_ts": 11.3, "output_toks": 11},
    {"arrival_time": 51.0, "queued_ts": 11.0, "first_token_ts": 11.5, "last_token_ts": 11.5, "output_toks": 1},
]


def bench(folder, rows=ROWS, **arguments):
    (folder / "vllm").mkdir(parents=True, exist_ok=True)
    known = {"max_num_batched_tokens": 2048, "max_num_seqs": 128, "tensor_parallel_size": 1} | arguments
    meta = {"model": "meta-llama/Llama-3.1-8B", "vllm_version": "0.19.0", "engine_kwargs": known}
    (folder / "vllm" / "meta.json").write_text(json.dumps(meta))
    (folder / "vllm" / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_times_count_from_the_arrival_on_the_engines_clock(tmp_path):
    found = read_bench(bench(tmp_path))
    assert found.arrival_s.tolist() == [0.0, 1.0]
    assert found.real.ttft_s == pytest.approx(
        [0.3, 0.5]
    )  # the second was queued as it arrived: 40 s between the clocks
    assert found.real.tpot_s == pytest.approx([0.1, 0.0])
    assert found.real.latency_s == pytest.approx([1.3, 0.5])
    assert (found.max_num_seqs, found.max_num_batched_tokens, found.version) == (128, 2048, "0.19.0")


def test_the_workload_arrives_when_it_did(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_text("\n".join(json.dumps({"input_tok_ids": [1, 2, 3], "output_toks": n}) for n in (11, 1)))
    workload = read_workload(path, read_bench(bench(tmp_path)))
    first, second = (conversation.turns[0] for conversation in workload.conversations())
    assert (first.prompt_tokens, first.output_tokens, second.arrival_s) == (3, 11, 1.0)
    assert second.prompt_ids.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"first_token_ts": None}, "requests.jsonl: line 2: 'first_token_ts' is None, expected a number > 0"),
        ({"last_token_ts": 11.2}, "requests.jsonl: line 2: times must not fall"),
        ({"arrival_time": 49.0, "queued_ts": 9.0}, "line 2: times must not fall"),
        ({"output_toks": 0}, "'output_toks' is 0"),
    ],
)
def test_bad_runs_are_named(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        read_bench(bench(tmp_path, [ROWS[0], ROWS[1] | change]))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="meta.json: cannot be read"):
        read_bench(tmp_path)
    with pytest.raises(ConfigError, match="engine_kwargs.max_num_seqs is None"):
        read_bench(bench(tmp_path, max_num_seqs=None))
    found, path = read_bench(bench(tmp_path)), tmp_path / "w.jsonl"
    path.write_text("{}")
    with pytest.raises(ConfigError, match="has 1 requests, the run has 2"):
        read_workload(path, found)
    path.write_text("{}\n{}")
    with pytest.raises(ConfigError, match="line 1: 'input_tok_ids'"):
        read_workload(path, found)
    path.write_text("{")
    with pytest.raises(ConfigError, match="line 1: no JSON"):
        read_workload(path, found)
    with pytest.raises(ConfigError, match="is missing; .* must hold LLMServingSim's data"):
        find_vllm(tmp_path)


def test_the_report_names_every_figure_and_what_was_missed(tmp_path):
    times = Latencies(*(np.array([0.1, 0.2, 0.4]) for _ in range(3)))
    rows = (VllmRow("ttft", "mean", 1.0, 1.01, 0.02), VllmRow("latency", "p99", 2.0, 1.9, 0.035))
    found = VllmFidelity(rows, 1.5e-3, 3, "a run", {}, times, replace(times, ttft_s=times.ttft_s * 1.1))
    assert [row.reached for row in rows] == [True, False]
    assert found.row("latency", "p99").error == pytest.approx(-0.05)
    text = markdown(found)
    assert "| TTFT mean | 1000.0 | 1010.0 | +1.00% | 2.0% |  |" in text
    assert "| latency p99 | 2000.0 | 1900.0 | -5.00% | 3.5% | missed |" in text
    assert "1 of 2 within their goal. Fitted: 1.500 ms" in text
    write_vllm(found, tmp_path / "run")
    with (tmp_path / "run" / "vllm.csv").open() as lines:
        table = list(csv.DictReader(lines))
    assert [row["statistic"] for row in table] == ["mean", "p99"] and table[1]["reached"] == "False"
    assert (tmp_path / "run" / "figures" / "vllm.png").stat().st_size > 10_000


def test_the_measured_run_is_met():
    """Bounds: what is reached, a little over. The goals are 2 % for means, 3.5 % for percentiles."""
    root = Path(os.environ.get("KVARENA_DATA", "none")) / "llmservingsim"
    if not root.is_dir():
        pytest.skip("KVARENA_DATA does not have it")
    found = compare_vllm(*find_vllm(root))
    assert found.requests == 300
    assert 0 < found.overhead_s < 2e-3
    assert found.times_from["measured"] > 0.99
    for row in found.rows:
        assert abs(row.error) <= (0.022 if row.statistic == "mean" else 0.03), row
    assert sum(row.reached for row in found.rows) >= 11
    first = slice(0, 30)
    assert found.simulated.latency_s[first].mean() == pytest.approx(found.real.latency_s[first].mean(), rel=1e-3)
