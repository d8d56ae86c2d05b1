"""Whose the folder is, and what a run finds that starts after another was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvarena.framework.execution.disk import DiskPages


def opened(folder: Path, **options: object) -> DiskPages:
    settings = {"num_pages": 8, "page_bytes": 5000, "page_format": "a", "persist": True} | options
    return DiskPages.open(folder, **settings)  # type: ignore[arg-type]


def put_one(pages: DiskPages) -> None:
    one = np.ones(1, np.int64)
    assert not len(pages.write(one, one, one - 1, np.full((1, 5000), 9, np.uint8)))


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    first = opened(tmp_path / "d")
    put_one(first)
    for persist in (True, False):
        with pytest.raises(ValueError, match=f"disk folder {tmp_path}/d is in use by another run"):
            opened(tmp_path / "d", persist=persist)
    code = f"""
from pathlib import Path
from kvarena.framework.execution.disk import DiskPages
DiskPages.open(Path({str(tmp_path / "d")!r}), 8, 5000, "a", persist=True)
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert other.returncode == 1 and "is in use by another run" in other.stderr
    first.close()
    again = opened(tmp_path / "d")
    assert again.stored()[1].tolist() == [1]
    again.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_pages": 9}, r"belongs to other pages: num_pages 8 \(expected 9\)$"),
        ({"page_bytes": 4999}, r"belongs to other pages: page_bytes 5000 \(expected 4999\)$"),
        ({"page_format": "b"}, r"belongs to other pages: page_format 'a' \(expected 'b'\)$"),
        ({"slab_bytes": 8192}, r"belongs to other pages: slab_pages 8 \(expected 1\)$"),
        ({"page_format": "b", "num_pages": 2}, r"page_format 'a' \(expected 'b'\), num_pages 8 \(expected 2\)$"),
        ({"persist": False}, "holds pages that persist; expected none"),
    ],
)
def test_a_folder_of_other_pages_is_refused_and_left_alone(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    pages = opened(tmp_path / "d")
    put_one(pages)
    pages.close()
    with pytest.raises(ValueError, match=said):
        opened(tmp_path / "d", **change)
    pages = opened(tmp_path / "d")
    assert pages.stored()[1].tolist() == [1]
    pages.close()


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    opened(tmp_path / "d").close()
    meta = json.loads((tmp_path / "d/meta.json").read_text())
    (tmp_path / "d/meta.json").write_text(json.dumps(meta | {"version": 2}))
    with pytest.raises(ValueError, match=r"version 2 \(expected 1\)"):
        opened(tmp_path / "d")


@pytest.mark.parametrize("persist", [True, False])
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path, persist: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"must be empty or a disk tier's own; it holds 'thesis\.tex'"):
        opened(tmp_path, persist=persist)
    (tmp_path / "meta.json").write_text('{"persist": false}')
    with pytest.raises(ValueError, match=r"meta\.json is not a disk tier's"):
        opened(tmp_path, persist=persist)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(ValueError, match=r"meta\.json is not a disk tier's"):
        opened(tmp_path, persist=persist)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_path_that_can_be_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ValueError, match=f"disk folder {path} cannot be used: "):
            opened(path)


def test_a_folder_is_made_but_not_what_it_is_in(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"disk folder {tmp_path}/mnt/d cannot be made: there is no {tmp_path}/mnt$"):
        opened(tmp_path / "mnt/d")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_did_not_mean_to_keep_is_cleared(tmp_path: Path) -> None:
    code = f"""
import os, signal
import numpy as np
from pathlib import Path
from kvarena.framework.execution.disk import DiskPages
pages = DiskPages.open(Path({str(tmp_path / "d")!r}), 99, 77, "other", persist=False)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["lock", "meta.json"]
    (tmp_path / "d/slab-0007.bin").write_text("as if killed while opening")
    pages = opened(tmp_path / "d")
    assert not (tmp_path / "d/slab-0007.bin").exists()
    assert not len(pages.stored()[0])
    pages.close()


KILLING = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from kvarena.framework.execution.disk import DiskPages

SLOTS, BYTES, ROUNDS = 48, 20_000, 40

def opened():
    return DiskPages.open(Path(sys.argv[1]), SLOTS, BYTES, "kill", persist=True, io_threads=3, slab_bytes=1 << 18)

def payload(keys):
    words = (keys.astype(np.uint64)[:, None] + np.arange(BYTES // 8, dtype=np.uint64)) * np.uint64(0xD1B54A32D192ED03)
    return (words ^ (words >> np.uint64(29))).view(np.uint8)

def write_on(seed, began):
    rng, pages = np.random.default_rng(seed), opened()
    while True:
        slots = rng.choice(SLOTS, rng.integers(1, 13), replace=False)
        keys = rng.integers(1, 2**62, len(slots))
        assert not len(pages.write(slots, keys, keys - 1, payload(keys)))
        os.write(began, b".")
        pages.forget(slots[: rng.integers(0, 2)])

def verify(report):
    pages = opened()
    slots, keys, parents = pages.stored()
    assert len(set(slots.tolist())) == len(slots) and (parents == keys - 1).all()
    out = np.full((len(slots), BYTES), 7, np.uint8)
    failed = pages.read(slots, keys, out)
    expected = payload(keys)
    expected[failed] = 7
    assert (out == expected).all(), "wrong data"
    assert set(pages.faults) <= {"checksum"}, pages.faults
    assert pages.faults.get("checksum", 0) == len(failed) <= 12, len(failed)
    pages.forget(slots[failed])
    os.write(report, b"%d %d\\n" % (len(slots) - len(failed), len(failed)))
    pages.close()

def child(work, *arguments):
    pid = os.fork()
    if not pid:
        try:
            work(*arguments)
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            os._exit(1)
    return pid

np.random.default_rng()
for number in range(ROUNDS):  # each child is forked from one thread, with everything imported
    waiting, began = os.pipe()
    pid = child(write_on, number, began)
    os.close(began)
    if number % 3:  # else it may be killed while it opens
        assert os.read(waiting, 1) == b"."
    time.sleep(random.Random(number).uniform(0, 0.04))
    os.kill(pid, signal.SIGKILL)
    os.close(waiting)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "the writer ended by itself"
    assert os.waitpid(child(verify, 1), 0)[1] == 0, f"round {number}"
"""


@pytest.mark.timeout(120)
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """A kill loses at most the pages of the batch at hand, and makes none of them wrong."""
    done = subprocess.run(
        [sys.executable, "-c", KILLING, str(tmp_path / "d")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rounds = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(rounds) == 40
    assert max(right for right, _ in rounds) > 30
