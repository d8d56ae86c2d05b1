"""A folder that is not fit for the disk tier is refused in one line, before anything is computed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
REAL = (
    *("backend=torch", "backend.threads=1", "tracking=none", "workload=rounds", "workload.limit=2", "workload.turns=2"),
    *("workload.prompt_tokens=32", "workload.output_tokens=2", "model.num_layers=1", "model.hidden_size=64"),
    *("memory.device_tokens=256", "memory.host_tokens=0", "memory.disk_tokens=1024", "system=pensieve"),
)
KEEP = (*REAL, "memory.disk_dir=kv", "memory.disk_persist=true")


def refused(tmp_path: Path, run: tuple[int, str, str], *said: str) -> None:
    """One line, exit status 2, no run folder."""
    status, out, err = run
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("kvarena: ")
    for words in said:
        assert words in err
    assert not any((tmp_path / "runs").rglob("*.json")), "a run was made"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def test_a_folder_of_other_pages(kvarena: Run, tmp_path: Path) -> None:
    assert kvarena(*KEEP, "runs=a")[0] == 0
    before = content(tmp_path / "kv")
    for other, said in {
        "backend.dtype=bfloat16": "page_format",
        "backend.decoupled=true": "page_format",
        "memory.disk_tokens=2048": "num_pages 64 (expected 128)",
    }.items():
        refused(tmp_path, kvarena(*KEEP, other), "disk folder kv belongs to other pages", said)
    refused(tmp_path, kvarena(*KEEP, "memory.disk_persist=false"), "holds pages that persist")
    assert content(tmp_path / "kv") == before


def test_a_folder_in_use(kvarena: Run, tmp_path: Path) -> None:
    assert kvarena(*KEEP, "runs=a")[0] == 0
    before = content(tmp_path / "kv")
    held = os.open(tmp_path / "kv/lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    refused(tmp_path, kvarena(*KEEP), "disk folder kv is in use by another run")
    os.close(held)
    assert content(tmp_path / "kv") == before
    assert kvarena(*KEEP, "runs=b")[0] == 0


def test_a_folder_with_something_else_in_it(kvarena: Run, tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv/thesis.tex").write_text("mine")
    refused(tmp_path, kvarena(*KEEP), "disk folder kv must be empty or a disk tier's own; it holds 'thesis.tex'")
    assert content(tmp_path / "kv") == {"thesis.tex": b"mine"}


def test_a_folder_whose_parent_is_missing(kvarena: Run, tmp_path: Path) -> None:
    """It may be on a disk that is not mounted: the pages would fill another."""
    said = f"disk folder {tmp_path}/mnt/kv cannot be made: there is no {tmp_path}/mnt\n"
    refused(tmp_path, kvarena(*REAL, f"memory.disk_dir={tmp_path}/mnt/kv"), said)
    assert not (tmp_path / "mnt").exists()


@pytest.fixture
def read_only(tmp_path: Path, mount: Callable[[Path, str], Path]) -> Path:
    """A file system, or for others than root a folder, in which nothing can be made."""
    folder = tmp_path / "read-only"
    if os.geteuid():
        folder.mkdir(mode=0o500)
        return folder
    return mount(folder, "ro")


@pytest.mark.parametrize("name", ["kv", "."])
def test_a_folder_that_cannot_be_written(kvarena: Run, tmp_path: Path, read_only: Path, name: str) -> None:
    refused(tmp_path, kvarena(*REAL, f"memory.disk_dir={read_only / name}"), "read-only cannot be written")


@pytest.fixture
def small_disk(tmp_path: Path, mount: Callable[[Path, str], Path]) -> Path:
    """A file system of 256 KiB."""
    return mount(tmp_path / "small", "size=256k")


def test_a_disk_that_is_too_small(kvarena: Run, tmp_path: Path, small_disk: Path) -> None:
    said = "has no room for the tier: 1048576 bytes needed, "
    refused(tmp_path, kvarena(*REAL, f"memory.disk_dir={small_disk}/kv"), said)
    assert list(small_disk.iterdir()) == []
