"""``task=replay`` from the command line: figures, files, sweeps, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

Run = Callable[..., tuple[int, str, str]]
CHATS = ("task=replay", "tracking=none", "workload.limit=20", "workload.rate=1")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Four blocks asked for by five requests: 1 2, 1 3, 1 2, 4, 1 2."""
    path = tmp_path / "trace.jsonl"
    rows = [(1000, [1, 2]), (900, [1, 3]), (1024, [1, 2]), (512, [4]), (1000, [1, 2])]
    requests = [
        {"timestamp": 1000 * n, "input_length": tokens, "output_length": 9, "hash_ids": ids}
        for n, (tokens, ids) in enumerate(rows)
    ]
    path.write_text("\n".join(map(json.dumps, requests)))
    return path


def folder(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "runs/default").iterdir()
    return found


def summary(run: Path) -> dict[str, Any]:
    content = json.loads((run / "summary.json").read_text())
    assert isinstance(content, dict)
    return content


def test_block_semantics_by_hand(kvarena: Run, tmp_path: Path, trace: Path) -> None:
    """Two blocks, LRU: 1 2 | 1+ 3 | 1+ 2 | 4 | 1 2: the page size of the config plays no part."""
    given = ("task=replay", "workload=mooncake", f"workload.path={trace}", "tracking=none")
    status, out, err = kvarena(*given, "memory.device_tokens=1024")
    assert (status, err) == (0, "")
    found = summary(folder(tmp_path))
    replay = found["replay"]
    assert (replay["accesses"], replay["hits"], replay["hit_ratio"], replay["evictions"]) == (9, 2, 2 / 9, 5)
    assert (replay["semantics"], replay["page_tokens"], replay["capacity"]) == ("block", 512, 2)
    assert (replay["infinite_hits"], replay["distinct_pages"]) == (5, 4)
    assert replay["belady_hits"] == 3
    assert (found["run"]["task"], found["run"]["status"]) == ("replay", "ok")
    assert (found["workload"]["requests"], found["workload"]["failed"]) == (5, 0)
    assert "page accesses replayed in" in out
    assert "lru" in out
    assert "22.22" in out


def test_prefix_semantics_by_hand(kvarena: Run, tmp_path: Path, trace: Path) -> None:
    """Full pages 1 | 1 | 1 2 | 4 | 1; the third request may hit one of its two; each but the third and fourth needs a
    page more."""
    given = ("task=replay", "task.semantics=prefix", "workload=mooncake", f"workload.path={trace}", "tracking=none")
    assert kvarena(*given, "memory.page_size=512", "memory.device_tokens=8192")[0] == 0
    replay = summary(folder(tmp_path))["replay"]
    assert (replay["accesses"], replay["hits"], replay["evictions"], replay["refused_requests"]) == (6, 3, 0, 0)


def test_a_curve_has_a_row_a_table_and_a_figure(kvarena: Run, tmp_path: Path) -> None:
    status, out, _ = kvarena(*CHATS, "task.capacities=[64,16,64,256]")
    assert status == 0
    run = folder(tmp_path)
    replay = summary(run)["replay"]
    assert [point["capacity"] for point in replay["curve"]] == [16, 64, 256]
    assert replay["capacity"] == 256
    assert replay["hits"] == replay["curve"][-1]["hits"]
    table = pq.read_table(run / "replay.parquet").to_pydict()
    assert table["hits"] == [point["hits"] for point in replay["curve"]]
    assert table["capacity_tokens"] == [256, 1024, 4096]
    assert (run / "figures/miss_ratio.png").stat().st_size > 10_000
    assert "infinite cache" in out


def test_without_a_size_the_curve_has_its_own(kvarena: Run, tmp_path: Path) -> None:
    assert kvarena(*CHATS, "task.points=3", "task.belady=false")[0] == 0
    replay = summary(folder(tmp_path))["replay"]
    pages = replay["distinct_pages"]
    assert [point["capacity"] for point in replay["curve"]] == [pages // 8, pages // 4, pages // 2]
    assert replay["belady_hits"] is None


def test_a_sweep_shows_all_policies_in_one_table_and_one_figure(kvarena: Run, tmp_path: Path) -> None:
    given = ("task.semantics=prefix", "task.capacities=[2000,4000]")  # the largest chat needs 1,900 pages of 16
    status, out, err = kvarena("-m", *CHATS, *given, "eviction=lru,fifo,arc,belady")
    assert (status, err) == (0, "")
    sweep = folder(tmp_path)
    markdown = (sweep / "comparison.md").read_text()
    assert markdown.count("## ") == 1
    labels = [line.split("|")[1].strip() for line in markdown.splitlines() if line.startswith("| ")]
    assert labels == ["policy", "---", "lru", "fifo", "arc", "belady (oracle)", "infinite cache"]
    assert [path.name for path in (sweep / "figures").iterdir()] == ["miss_ratio.png"]
    assert out.count("infinite cache") == 1


def test_the_same_seed_gives_the_same_summary(kvarena: Run, tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        assert kvarena(*CHATS, "task.capacities=[50]", f"runs={name}")[0] == 0
        content = summary(next((tmp_path / name / "default").iterdir()))
        del content["run"]["id"], content["run"]["started"]
        found.append(content)
    assert found[0] == found[1]


BAD = [
    (["task.semantics=blocks"], ["task=replay: semantics is 'blocks'", "did you mean 'block'"]),
    (["task.capacities=[0]"], ["capacities is [0]", "at least 1"]),
    (["task.capacities=[]"], ["capacities is []"]),
    (["task.capacities=[a]"], ["capacities", "'a'"]),
    (["task.points=0"], ["points is 0"]),
    (["memory.device_tokens=3"], ["device_tokens is 3"]),
    (["memory.page_size=1000000"], ["no full page of 1000000 tokens"]),
    (["task.slo.ttft_s=1"], ["task.slo"]),
    (["workload=mooncake"], ["workload.path"]),
]


IN_SWEEPS = [
    case for case in BAD if case[0][0] in ("task.capacities=[0]", "memory.page_size=1000000", "workload=mooncake")
]
MODES = [((), *case) for case in BAD] + [(("-m", "eviction=lru,fifo"), *case) for case in IN_SWEEPS]


@pytest.mark.parametrize(("mode", "arguments", "words"), MODES, ids=lambda value: " ".join(value))
def test_bad_input_is_one_line_and_status_2(
    kvarena: Run, tmp_path: Path, mode: tuple[str, ...], arguments: list[str], words: list[str]
) -> None:
    base = CHATS if not any(argument.startswith("workload=") for argument in arguments) else CHATS[:2]
    status, out, err = kvarena(*mode, *base, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []


def test_a_trace_whose_blocks_are_larger_than_the_device(kvarena: Run, trace: Path) -> None:
    status, _, err = kvarena(*CHATS[:2], "workload=mooncake", f"workload.path={trace}", "memory.device_tokens=100")
    assert (status, err.count("\n")) == (2, 1)
    assert "memory.device_tokens is 100, expected at least one block of the trace: 512 tokens" in err


LIGHT = """
import sys
from kvarena.framework.cli import main
status = main()
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "wandb", "triton"})
sys.exit(f"status {status}, imported {heavy}" if status or heavy else 0)
"""


def test_a_replay_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    import subprocess

    command = [sys.executable, "-c", LIGHT, *CHATS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_mooncake_trace(kvarena: Run, tmp_path: Path) -> None:
    if not (data := os.environ.get("KVARENA_DATA")):
        pytest.skip("KVARENA_DATA is not set: the Mooncake trace is not checked")
    path = Path(data) / "mooncake/conversation_trace.jsonl"
    given = ("workload=mooncake", f"workload.path={path}", "memory.page_size=512", "memory.device_tokens=5120000")
    assert kvarena(*CHATS[:2], *given, "task.belady=false")[0] == 0
    replay = summary(folder(tmp_path))["replay"]
    assert (replay["accesses"], replay["hits"], round(replay["hit_ratio"], 6)) == (288500, 60921, 0.211165)
