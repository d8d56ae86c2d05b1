"""Fixed runs keep their summaries; the same run is the same to the byte; nothing is lost or made, and time runs on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from runs import CASES, EXPECTED, lasting, run

ROUNDING = 1e-9  # other processors sum in another order
TIERS = ("device", "host", "disk")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run folder of each case that was run already."""
    return {name: tmp_path_factory.mktemp("golden") / name for name in CASES}


def folder_of(name: str, folders: dict[str, Path]) -> Path:
    if not (folders[name] / "summary.json").exists():
        run(CASES[name], folders[name])
    return folders[name]


def differences(got: Any, wanted: Any, where: str = "summary") -> Iterator[str]:
    """Where two summaries differ: counts and names must be equal, times within rounding."""
    if isinstance(wanted, dict) and isinstance(got, dict) and got.keys() == wanted.keys():
        for key in wanted:
            yield from differences(got[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list) and isinstance(got, list) and len(got) == len(wanted):
        for index, (one, two) in enumerate(zip(got, wanted, strict=True)):
            yield from differences(one, two, f"{where}[{index}]")
    elif isinstance(wanted, float) and isinstance(got, float):
        if got != pytest.approx(wanted, rel=ROUNDING, abs=ROUNDING):
            yield f"{where}: {got!r}, kept {wanted!r}"
    elif type(got) is not type(wanted) or got != wanted:
        yield f"{where}: {got!r}, kept {wanted!r}"


@pytest.mark.parametrize("name", CASES)
def test_a_summary_is_as_it_was(name: str, folders: dict[str, Path]) -> None:
    summary = json.loads((folder_of(name, folders) / "summary.json").read_text())
    kept = json.loads((EXPECTED / f"{name}.json").read_text())
    found = list(differences(lasting(summary), kept))
    assert not found, "\n".join(
        [f"{len(found)} figures differ; meant so? python tests/golden/runs.py {name}", *found[:8]]
    )


def test_every_kept_summary_has_its_case() -> None:
    assert {path.stem for path in EXPECTED.glob("*.json")} == set(CASES)


def test_the_comparison_sees_what_differs() -> None:
    kept = {"a": [1, 2.0, None, {"b": "x"}]}
    assert not list(differences({"a": [1, 2.0 + 1e-12, None, {"b": "x"}]}, kept))
    for other in ([2, 2.0, None, {"b": "x"}], [1, 2.1, None, {"b": "x"}], [1, 2.0, 0, {"b": "x"}], [1, 2.0, None, {}]):
        assert len(list(differences({"a": other}, kept))) == 1


# --- determinism ----------------------------------------------------------------------------------------------------

_ANOTHER_PROCESS = """
import sys; from pathlib import Path; from runs import CASES, run
run(CASES[sys.argv[1]], Path(sys.argv[2]))
"""


def tables(folder: Path) -> dict[str, bytes]:
    """The bytes of a run's tables and timeline."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".parquet", ".json")}


@pytest.mark.parametrize("name", ["vllm_offload-requests", "pensieve-chats", "cachedattention-requests"])
def test_two_processes_agree_to_the_byte(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _ANOTHER_PROCESS, name, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    here, there = tables(folder_of(name, folders)), tables(tmp_path)
    summaries = [lasting(json.loads(held.pop("summary.json"))) for held in (here, there)]
    assert summaries[0] == summaries[1]
    assert here.keys() == there.keys() >= {"requests.parquet", "steps.parquet", "transfers.parquet"}
    assert [file for file in here if here[file] != there[file]] == []


# --- conservation ---------------------------------------------------------------------------------------------------


def columns(folder: Path, table: str) -> dict[str, Any]:
    """A table's columns as arrays."""
    return {name: column.to_numpy() for name, column in zip(*_read(folder / f"{table}.parquet"), strict=True)}


def _read(path: Path) -> tuple[list[str], list[Any]]:
    table = pq.read_table(path)
    return table.column_names, table.columns


@pytest.mark.parametrize("name", CASES)
def test_no_request_is_lost(name: str, folders: dict[str, Path]) -> None:
    requests = columns(folder_of(name, folders), "requests")
    trace = (Path(__file__).parent / "traces" / f"{'requests' if 'requests' in name else 'chats'}.jsonl").read_text()
    rows = [json.loads(line) for line in trace.splitlines()]
    turns = len(rows) if "requests" in name else sum(len(row["turns"]) for row in rows)
    if "crowded" not in name:  # there conversations are cut
        assert len(requests["request"]) == turns
    assert sorted(requests["request"]) == list(range(len(requests["request"])))
    done = requests["status"] == "ok"
    parts = (
        sum(requests[f"reused_{tier}"] for tier in (*TIERS, "remote")) + requests["recomputed"] + requests["dropped"]
    )
    assert (parts[done] == requests["reusable_tokens"][done]).all()
    steps = columns(folder_of(name, folders), "steps")
    replies, decoded = int((requests["output_tokens"] - 1)[done].sum()), int(steps["decode_tokens"].sum())
    suspensions = int(requests["suspensions"].sum())  # each may make one token come from a prefill
    assert replies - suspensions <= decoded <= replies


@pytest.mark.parametrize("name", CASES)
def test_time_runs_on(name: str, folders: dict[str, Path]) -> None:
    steps, requests = (columns(folder_of(name, folders), table) for table in ("steps", "requests"))
    ends = steps["start_s"] + steps["duration_s"]
    assert (steps["duration_s"] > 0).all() and (steps["stall_s"] >= 0).all()
    assert (steps["start_s"][1:] >= ends[:-1] - 1e-9).all(), "one iteration at a time"
    assert (steps["stall_s"] <= steps["duration_s"] + 1e-12).all()
    done = requests["status"] == "ok"
    times = [
        requests[name][done].astype(float) for name in ("arrival_s", "scheduled_s", "first_token_s", "completion_s")
    ]
    assert all((early <= late + 1e-9).all() for early, late in pairwise(times))
    summary = json.loads((folder_of(name, folders) / "summary.json").read_text())
    assert summary["device"]["busy_s"] <= summary["workload"]["duration_s"] + 1e-9


@pytest.mark.parametrize("name", [name for name in CASES if "gpu" not in name and not name.startswith("vllm-")])
def test_links_carry_what_enters(name: str, folders: dict[str, Path]) -> None:
    transfers = columns(folder_of(name, folders), "transfers")
    assert (transfers["end_s"] >= transfers["start_s"]).all() and (transfers["start_s"] >= 0).all()
    summary = json.loads((folder_of(name, folders) / "summary.json").read_text())
    for link in np.unique(transfers["link"].astype(str)):
        here = transfers["link"].astype(str) == link
        starts, ends = transfers["start_s"][here], transfers["end_s"][here]
        if link != "disk->device":  # which crosses two links, one after the other
            order = np.argsort(starts, kind="stable")
            assert (starts[order][1:] >= ends[order][:-1] - 1e-9).all(), f"{link} carries two at a time"
            assert (ends - starts).sum() <= ends.max() - starts.min() + 1e-9
        assert summary["transfer"]["bytes"].get(link, 0) <= transfers["bytes"][here].sum()
    steps = columns(folder_of(name, folders), "steps")
    for tier in TIERS:
        assert (steps[f"{tier}_pages"] >= 0).all()
