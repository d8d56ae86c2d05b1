"""The memory hierarchy from the command line: which tiers there are, what is left behind, what a later run finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

Run = Callable[..., tuple[int, str, str]]
SIMULATED = ("backend=simulated", "model=llama-3-8b", "hardware=h100", "tracking=none", "workload.limit=20")
SMALL = ("memory.device_tokens=8192", "memory.host_tokens=8192", "memory.disk_tokens=65536")
REAL = (
    *("backend=torch", "backend.threads=1", "tracking=none", "workload=rounds", "workload.limit=3", "workload.turns=2"),
    *("workload.prompt_tokens=48", "workload.output_tokens=4", "model.num_layers=1", "model.hidden_size=64"),
    *("memory.device_tokens=208", "memory.host_tokens=0", "memory.disk_tokens=4096", "save_tokens=true"),
)


def summary(folder: Path) -> dict[str, Any]:
    (run,) = folder.iterdir()
    content = json.loads((run / "summary.json").read_text())
    assert isinstance(content, dict)
    return content


def replies(runs: Path) -> dict[tuple[int, int], list[int]]:
    (run,) = (runs / "default").iterdir()
    rows = pq.read_table(run / "requests.parquet").to_pylist()
    return {(row["conversation"], row["turn"]): row["output_ids"] for row in rows}


@pytest.mark.parametrize(
    ("system", "tiers"), [("vllm", {"device"}), ("pensieve", {"device", "host", "disk"})], ids=["vllm", "pensieve"]
)
def test_a_tier_is_there_only_if_something_can_fill_it(
    kvarena: Run, tmp_path: Path, system: str, tiers: set[str]
) -> None:
    assert kvarena(*SIMULATED, *SMALL, f"system={system}")[0] == 0
    found = summary(tmp_path / "runs/default")
    assert set(found["cache"]["evicted_pages"]) == tiers
    assert (found["transfer"]["bytes"] == {}) == (tiers == {"device"})
    assert found["cache"]["faults"] == {}


def test_a_tier_of_no_tokens_is_no_tier(kvarena: Run, tmp_path: Path) -> None:
    assert kvarena(*SIMULATED, "system=pensieve", "memory.device_tokens=8192", "memory.host_tokens=0")[0] == 0
    assert set(summary(tmp_path / "runs/default")["cache"]["evicted_pages"]) == {"device"}


def test_host_memory_that_the_hardware_lacks_is_refused(kvarena: Run, tmp_path: Path) -> None:
    status, _, err = kvarena(*SIMULATED, "system=pensieve", "memory.host_tokens=1e10")
    assert (status, err.count("\n")) == (2, 1)
    assert "memory.host_tokens is 10000000000" in err
    assert list(tmp_path.iterdir()) == []


def test_the_disks_files_go_with_the_run(kvarena: Run, tmp_path: Path) -> None:
    status, _, err = kvarena(*REAL, "system=pensieve")
    assert status == 0, err
    found = summary(tmp_path / "runs/default")
    assert found["transfer"]["bytes"]["device->disk"] > 0
    assert found["cache"]["reused_tokens"]["disk"] > 0
    (run,) = (tmp_path / "runs/default").iterdir()
    assert not (run / "disk").exists()


def test_a_later_run_finds_what_persists_and_refuses_what_is_anothers(kvarena: Run, tmp_path: Path) -> None:
    keep = ("memory.disk_dir=kv", "memory.disk_persist=true", "system=pensieve")
    for name in ("a", "b"):
        status, _, err = kvarena(*REAL, *keep, f"runs={name}")
        assert status == 0, err
    first, second = (summary(tmp_path / name / "default")["transfer"]["bytes"] for name in ("a", "b"))
    assert second["disk->device"] > first.get("disk->device", 0)  # the first turns are there already
    assert replies(tmp_path / "a") == replies(tmp_path / "b")
    for other in ("seed=1", "memory.page_size=32", "model.num_kv_heads=2"):
        status, _, err = kvarena(*REAL, *keep, other, "runs=c")
        assert (status, err.count("\n")) == (2, 1), err
        assert "belongs to other pages" in err
    assert list((tmp_path / "c").iterdir()) == []


def test_a_torn_page_is_a_miss_that_is_said(kvarena: Run, tmp_path: Path) -> None:
    keep = ("memory.disk_dir=kv", "memory.disk_persist=true", "system=pensieve")
    assert kvarena(*REAL, *keep, "runs=a")[0] == 0
    for slab in (tmp_path / "kv").glob("slab-*.bin"):
        slab.write_bytes(bytes(byte ^ 1 for byte in slab.read_bytes()))
    status, out, err = kvarena(*REAL, *keep, "runs=b")
    assert status == 0
    faults = summary(tmp_path / "b/default")["cache"]["faults"]
    assert faults["checksum"] > 0
    assert f"faults of the memory tiers (checksum {faults['checksum']}); no answer changed" in " ".join(out.split())
    said = [line for line in err.splitlines() if line.startswith("WARNING: pensieve: ")]
    assert len(said) == 1, said
    assert "failed the checksum" in said[0]
    assert replies(tmp_path / "a") == replies(tmp_path / "b")


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_a_tier_moves_latency(kvarena: Run, tmp_path: Path, tier: str) -> None:
    """TTFT falls as the tier grows, and the sweep's figure shows it; ``experiment=tiers`` does so on both backends."""
    setting = ("backend=simulated", "model=peers", "workload=rounds", "workload.turns=4", "memory.device_tokens=3200")
    none = "memory.disk_tokens=0" if tier == "host" else "memory.host_tokens=0"
    sizes = f"memory.{tier}_tokens=0,6400,12800"
    status, _, err = kvarena("-m", *setting, "tracking=none", "system=pensieve", none, sizes)
    assert (status, err) == (0, "")
    (folder,) = (tmp_path / "runs/default").iterdir()
    found = [json.loads((folder / job / "summary.json").read_text()) for job in "012"]
    means_s = [one["latency"]["ttft_s"]["mean"] for one in found]
    assert means_s[1] < 0.75 * means_s[0]
    assert means_s[2] <= 1.01 * means_s[1]
    assert found[1]["throughput"]["requests_per_s"] > 1.2 * found[0]["throughput"]["requests_per_s"]
    assert (folder / f"figures/ttft_by_{tier}_size.png").exists()
