"""A sweep's folder: its own, resumed when it was left unfinished, never shared."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest

from kvarena.framework.sweeps import JobState, SweepFolder, clear, job_lock, job_state, mark, open_sweep
from kvarena.framework.sweeps.folder import read_book

JOBS = [("seed=0",), ("seed=1",), ("seed=2",)]


def start(base: Path, name: str = "a", key: str = "k", code: str = "c", resume: bool = True) -> SweepFolder:
    return open_sweep(base / name, key, code, ["kvarena"], resume)[0]


def notes(base: Path, name: str, code: str = "c") -> list[str]:
    folder, told = open_sweep(base / name, "k", code, ["kvarena"], True)
    folder.close("interrupted")
    return told


def finish(folder: Path, status: str = "ok") -> None:
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({"schema": 1, "run": {"status": status}}))
    mark(folder, ok=status == "ok", seconds=1.0, overrides=("seed=0",))


def test_an_unfinished_sweep_is_resumed_with_the_numbers_that_its_jobs_had(tmp_path: Path) -> None:
    first = start(tmp_path)
    assert first.add(JOBS) == [0, 1, 2]
    finish(first.folder(1))
    first.close("interrupted")
    again = start(tmp_path, "b")
    assert (again.path, again.resumed) == (tmp_path / "a", True)
    assert again.add(reversed(JOBS)) == [2, 1, 0]
    assert again.add([("seed=9",)]) == [3]
    assert again.finished() == [tmp_path / "a/1"]


def test_a_killed_sweep_is_resumed_too(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=lambda: start(tmp_path).add(JOBS))
    process.start()
    process.join()
    assert read_book(tmp_path / "a")["status"] == "running"
    assert start(tmp_path, "b").resumed


@pytest.mark.parametrize(
    ("status", "key", "code", "resume"),
    [
        ("finished", "k", "c", True),
        ("interrupted", "other", "c", True),
        ("interrupted", "k", "other", True),
        ("interrupted", "k", "c", False),
    ],
)
def test_what_is_finished_or_different_is_not_resumed(
    tmp_path: Path, status: str, key: str, code: str, resume: bool
) -> None:
    start(tmp_path).close(status)  # type: ignore[arg-type]
    again = start(tmp_path, "b", key, code, resume)
    assert (again.path, again.resumed) == (tmp_path / "b", False)


def test_a_sweep_that_runs_is_left_alone_and_named(tmp_path: Path) -> None:
    running = start(tmp_path)
    (told,) = notes(tmp_path, "b")
    assert "runs this sweep in" in told and "folder of its own" in told
    running.close("interrupted")
    assert "other code" in notes(tmp_path, "c", code="new")[0]


def test_the_newest_is_resumed(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        start(tmp_path, name, resume=False).close("interrupted")
    assert start(tmp_path, "d").path == tmp_path / "c"


def test_two_sweeps_that_want_the_same_folder_get_one_each(tmp_path: Path) -> None:
    folders = [start(tmp_path, resume=False) for _ in range(3)]
    assert [folder.path.name for folder in folders] == ["a", "a-2", "a-3"]


def test_many_processes_at_once_get_a_folder_each(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate, out = context.Barrier(8), context.SimpleQueue()

    def claim() -> None:
        gate.wait()
        held = start(tmp_path)
        out.put(held.path.name)
        gate.wait()  # all hold theirs until each has one

    processes = [context.Process(target=claim) for _ in range(8)]
    for process in processes:
        process.start()
    assert len({out.get() for _ in processes}) == 8
    for process in processes:
        process.join()


def test_only_one_of_many_resumes(tmp_path: Path) -> None:
    start(tmp_path).close("interrupted")
    held = [start(tmp_path, name) for name in "bcd"]
    assert [folder.resumed for folder in held] == [True, False, False]


@pytest.mark.parametrize("damage", ["summary.json", "job.json"])
def test_a_job_without_its_files_is_half_written(tmp_path: Path, damage: str) -> None:
    finish(tmp_path / "0")
    assert job_state(tmp_path / "0") is JobState.FINISHED
    (tmp_path / "0" / damage).write_text("{")
    assert job_state(tmp_path / "0") is JobState.BEGUN
    (tmp_path / "0" / damage).unlink()
    assert job_state(tmp_path / "0") is JobState.BEGUN


def test_the_states_of_a_job(tmp_path: Path) -> None:
    assert job_state(tmp_path / "0") is JobState.NEW
    (tmp_path / "0/.hydra").mkdir(parents=True)
    assert job_state(tmp_path / "0") is JobState.BEGUN
    finish(tmp_path / "0", "failed")
    assert job_state(tmp_path / "0") is JobState.FAILED


def test_renewing_keeps_what_is_finished_and_forgets_the_rest(tmp_path: Path) -> None:
    folder = start(tmp_path)
    folder.add(JOBS)
    finish(folder.folder(0))
    finish(folder.folder(1), "failed")
    (folder.folder(2) / ".hydra").mkdir(parents=True)
    folder.renew()
    assert [folder.state(number) for number in range(3)] == [JobState.FINISHED, JobState.NEW, JobState.NEW]
    assert (folder.folder(1) / "summary.json").exists(), "whoever may still write there is not disturbed"


def test_clearing_leaves_the_config_and_the_lock(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "figures").mkdir()
    with job_lock(tmp_path):
        clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".hydra", ".lock"}


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    held = job_lock(tmp_path)
    assert held.take()
    assert not job_lock(tmp_path).take()
    held.release()
    with job_lock(tmp_path):
        assert not job_lock(tmp_path).take()
    assert job_lock(tmp_path).take()


def test_a_folder_that_someone_deletes_meanwhile_is_no_trouble(tmp_path: Path) -> None:
    folder = start(tmp_path)
    shutil.rmtree(folder.path)
    folder.close("finished")
