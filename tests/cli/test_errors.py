"""What is wrong is said in one line, with exit status 2, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

SIMULATED = ("backend=simulated", "model=llama-3-8b", "hardware=h100", "tracking=none", "workload.limit=3")
Run = Callable[..., tuple[int, str, str]]
BAD = [
    (
        ["-m", "truncation=h2o,tova", "truncation.budget_ratio=0.2"],
        ["truncation differs between", "'truncation.budget_ratio=choice(VALUE)'"],
    ),
    (["truncation=streaming_llm"], ["truncation.positions=cache", "needs backend.decoupled=true"]),
    (["truncation=h2o", "backend.decoupled=true"], ["truncation.positions=true", "needs backend.decoupled=false"]),
    (["truncation=quest"], ["truncation=quest chooses pages by the queries", "backend=simulated has none"]),
    (["compression=kivi", "truncation=oldest_half"], ["compression=kivi goes with truncation=none"]),
    (["compression=kivi", "compression.bits=3"], ["bits is 3"]),
    (["compression=kvsharer", "compression.layer_map={5:2,2:7}"], ["layer_map has 2: 7", "points upward"]),
    (["compression=kvsharer", "compression.layer_map={40:2}"], ["layer_map has 40: 2", "layers of the model: 0 to 31"]),
    (["compression=kvsharer", "compression.shared_layers=32"], ["shared_layers is 32", "at most 31"]),
    (
        ["compression=kvsharer", "truncation=h2o"],
        ["compression=kvsharer lets layers share K/V", "not with truncation=h2o"],
    ),
    (
        ["backend=torch", "model=tiny", "compression=kvsharer", "compression.layer_map={9:0}"],
        ["layer_map has 9: 0", "layers of the model: 0 to 3"],
    ),
    (["truncation=h2o", "task=replay"], ["truncation=h2o", "task=replay knows whole pages only"]),
    (
        ["truncation=snapkv", "truncation.budget_tokens=8", "truncation.budget_ratio=null"],
        ["budget_tokens is 8", "window"],
    ),
    (["save_decisions=true"], ["save_decisions=true", "decides on no tokens"]),
    (["systm=vllm"], ["unknown key 'systm'", "did you mean 'system'"]),
    (["system=vlm"], ["unknown system 'vlm'", "known: ", "did you mean 'vllm'"]),
    (["evicton=lru"], ["'evicton'", "did you mean 'eviction'"]),
    (["eviction=lruu"], ["unknown eviction 'lruu'", "s3fifo", "did you mean 'lru'"]),
    (["experiment=quickstrat"], ["'quickstrat'", "did you mean 'quickstart'"]),
    (["memory.pagesize=16"], ["'memory.pagesize'", "did you mean 'memory.page_size'"]),
    (["memory.page_size=abc"], ["memory: page_size is 'abc' (str)", "expected int"]),
    (["memory.page_size=0"], ["page_size is 0", "at least 1"]),
    (["memory.device_tokens=3"], ["device_tokens is 3", "page_size"]),
    (["memory.host_tokens=-1"], ["host_tokens is -1", "expected 0 (no such tier)"]),
    (["memory.host_tokens=15"], ["host_tokens is 15", "page_size = 16"]),
    (["memory.disk_tokens=8"], ["disk_tokens is 8", "page_size = 16"]),
    (["memory.disk_tokens=null"], ["disk_tokens is null", "expected a number of tokens"]),
    (["memory.disk_persist=true"], ["disk_persist is true", "disk_dir is null"]),
    (["memory.disk_persist=true", "memory.disk_dir=/tmp"], ["disk_persist is true", "disk_tokens is 0"]),
    (
        ["memory.disk_persist=true", "memory.disk_dir=/tmp", "memory.disk_tokens=1024"],
        ["backend=simulated keeps no data"],
    ),
    (
        ["memory.disk_dir=/dev/null/x", "memory.disk_tokens=1024"],
        ["disk_dir is '/dev/null/x'", "/dev/null is no folder"],
    ),
    (["memory.disk_dir=''"], ["disk_dir is ''"]),
    (["+eviction.weight=1"], ["eviction=lru", "unknown knob 'weight'"]),
    (["+nonsense=1"], ["unknown key 'nonsense'"]),
    (["seed=x"], ["seed is 'x' (str)", "expected int"]),
    (["save_tokens=1"], ["save_tokens is 1 (int)", "expected bool"]),
    (["task.slo.ttft_s=-1"], ["ttft_s is -1"]),
    (["vllm"], ["'vllm'", "expected key=value"]),
    (["a=["], ["'a=['", "expected key=value"]),
    (["task=replya"], ["unknown task 'replya'", "did you mean 'replay'"]),
    (["eviction.name=fifo"], ["eviction.name", "choose one with eviction=..."]),
    (["seed=-1"], ["seed is -1"]),
    (["runs="], ["runs is ''"]),
    (["workload.max_context=1"], ["max_context"]),
    (["backend=torch", "model=llama-3-8b"], ["llama-3-8b", "torch"]),
    (["backend=torch", "model=hf"], ["model.path"]),
    (["backend=torch", "model=hf", "model.path=/no/such/model"], ["/no/such/model"]),
    (["workload=jsonl"], ["workload.path"]),
    (["workload=jsonl", "workload.path=/no/such/file"], ["/no/such/file", "does not exist"]),
    (["workload.rate=-1"], ["rate is -1"]),
    (["workload.rate=null", "memory.device_tokens=64"], ["conversation 0, turn", "64"]),
    (["tracking=wanb"], ["unknown tracking 'wanb'"]),
    (["runs=/proc/nowhere"], ["cannot write the run folder", "/proc/nowhere"]),
]


IN_SWEEPS = {  # one of each place that refuses: words, composition, types, what goes together, files, workload, folder
    *("a=[", "systm=vllm", "eviction=lruu", "memory.page_size=abc", "+nonsense=1", "truncation=quest"),
    *("save_decisions=true", "workload.path=/no/such/file", "memory.device_tokens=64", "runs=/proc/nowhere"),
}
SWEPT = [case for case in BAD if case[0][-1] in IN_SWEEPS]
assert len(SWEPT) == len(IN_SWEEPS)
MODES = [((), *case) for case in BAD] + [(("-m", "seed=0,1"), *case) for case in SWEPT]


@pytest.mark.parametrize(("mode", "arguments", "words"), MODES, ids=lambda value: " ".join(value))
def test_bad_input_is_one_line_and_status_2(
    kvarena: Run, tmp_path: Path, mode: tuple[str, ...], arguments: list[str], words: list[str]
) -> None:
    chosen = {argument.split("=")[0] for argument in arguments}
    base = [argument for argument in SIMULATED if argument.split("=")[0] not in chosen]
    status, out, err = kvarena(*mode, *base, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("kvarena: ")
    assert err.count("\n") == 1, err
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [(), ("-m", "seed=0,1")], ids=["run", "sweep"])
def test_a_malformed_file_names_the_line(kvarena: Run, tmp_path: Path, mode: tuple[str, ...]) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"conversation": 1, "turns": [{"prompt": "a", "output_tokens": 2}]}\n{"conversation"\n')
    arguments = [*SIMULATED, "workload=jsonl", f"workload.path={path}", "workload.limit=null"]
    status, out, err = kvarena(*mode, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert str(path) in err
    assert "2" in err.replace(str(path), "")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_where_the_run_folder_should_be(kvarena: Run, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way")
    status, _, err = kvarena(*SIMULATED)
    assert (status, err.count("\n")) == (2, 1)
    assert "cannot write the run folder" in err
    assert (tmp_path / "runs").read_text() == "in the way"
