"""The same command again goes on with what was left unfinished."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvarena.framework import serve
from kvarena.framework.sweeps import Lock

SIMULATED = ("backend=simulated", "model=llama-3-8b", "hardware=h100", "tracking=none", "workload.limit=3")
Run = Callable[..., tuple[int, str, str]]
Break = Callable[[int, BaseException], None]


@pytest.fixture(autouse=True)
def comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which runs are compared, instead of the comparison, which has tests of its own."""

    def report(folders: Sequence[Path], out: Path) -> None:
        (out / "comparison.md").touch()
        print("compared", *(folder.name for folder in folders))

    monkeypatch.setattr("kvarena.framework.cli.ending.report", report)


def summary(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "summary.json").read_text())
    assert isinstance(content, dict)
    return content


def ids(folder: Path) -> list[str]:
    return [summary(folder / str(job))["run"]["id"] for job in range(3)]


@pytest.fixture
def break_at(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Runs with this seed raise."""
    real = serve.Server.run

    def broken(seed: int, error: BaseException) -> None:
        def run(self: Any, *rest: Any) -> None:
            if self._parts.seed == seed:
                raise error
            real(self, *rest)

        monkeypatch.setattr(serve.Server, "run", run)

    return broken


@pytest.fixture
def only(tmp_path: Path) -> Callable[[], Path]:
    def folder() -> Path:
        (found,) = (tmp_path / "runs/default").iterdir()
        return found

    return folder


def test_after_ctrl_c_the_same_command_does_the_rest(
    kvarena: Run, break_at: Break, only: Callable[[], Path], tmp_path: Path
) -> None:
    break_at(1, KeyboardInterrupt())
    status, out, err = kvarena("-m", *SIMULATED, "seed=0,1,2")
    folder = only()
    assert status == 130
    assert err.splitlines()[-1] == (
        f"kvarena: interrupted: 1 of 3 jobs are finished in {folder.relative_to(tmp_path)};"
        " the same command goes on with the rest"
    )
    assert out == "compared 0\n" and (folder / "comparison.md").exists()
    first = summary(folder / "0")["run"]["id"]

    break_at(-1, KeyboardInterrupt())
    status, out, err = kvarena("-m", "seed=0,1,2", *SIMULATED)  # in another order
    assert status == 0
    assert err.startswith(f"kvarena: resumes {folder.relative_to(tmp_path)}: 1 of 3 jobs are finished, 1 half-written")
    assert "resume=false starts anew" in err
    assert ids(only())[0] == first
    assert out == "compared 0 1 2\n"

    assert kvarena("-m", *SIMULATED, "seed=0,1,2")[0] == 0
    assert len(list((tmp_path / "runs/default").iterdir())) == 2, "a finished sweep is measured anew"


@pytest.mark.e2e
def test_jobs_that_failed_are_done_again(kvarena: Run, break_at: Break, only: Callable[[], Path]) -> None:
    break_at(1, RuntimeError("the disk is full"))
    status, _, err = kvarena("-m", *SIMULATED, "seed=0,1,2")
    assert status == 1
    assert "kvarena: 1 of 3 jobs failed; the same command does them again\n" in err
    before = ids(only())
    break_at(-1, RuntimeError())
    status, _, err = kvarena("-m", *SIMULATED, "seed=0,1,2")
    assert (status, "1 that failed will be done again" in err) == (0, True)
    after = ids(only())
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]
    assert not (only() / "1/error.txt").exists()


@pytest.mark.e2e
def test_resume_false_starts_anew(kvarena: Run, break_at: Break, tmp_path: Path) -> None:
    break_at(1, RuntimeError("broken"))
    for words in ((), ("resume=false",)):
        assert kvarena("-m", *SIMULATED, "seed=0,1", *words)[0] == 1
    assert len(list((tmp_path / "runs/default").iterdir())) == 2


@pytest.mark.e2e
def test_a_sweep_that_another_process_runs_is_not_resumed_into(
    kvarena: Run, break_at: Break, only: Callable[[], Path], tmp_path: Path
) -> None:
    break_at(1, RuntimeError("broken"))
    kvarena("-m", *SIMULATED, "seed=0,1")
    folder, lock = only(), Lock(only() / ".lock")
    assert lock.take()
    break_at(-1, RuntimeError())
    status, _, err = kvarena("-m", *SIMULATED, "seed=0,1")
    lock.release()
    assert (status, err.count("\n")) == (0, 1)
    assert f"runs this sweep in {folder.relative_to(tmp_path)}; this one has a folder of its own" in err
    assert len(list((tmp_path / "runs/default").iterdir())) == 2


@pytest.mark.e2e
def test_half_written_jobs_are_done_again_in_place(kvarena: Run, only: Callable[[], Path]) -> None:
    """As SIGKILL leaves them: the book says that the sweep runs, and no one holds its lock."""
    assert kvarena("-m", *SIMULATED, "seed=0,1,2")[0] == 0
    folder = only()
    before = ids(folder)
    book = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({**book, "status": "running"}))
    (folder / "1/job.json").unlink()
    (folder / "1/requests.parquet").write_text("half")
    (folder / "1/left.tmp").write_text("by the process that was killed")
    (folder / "2/summary.json").write_text('{"schema": 1, "run": {"sta')
    status, _, err = kvarena("-m", *SIMULATED, "seed=0,1,2")
    assert (status, "1 of 3 jobs are finished, 2 half-written will be done again" in err) == (0, True)
    after = ids(folder)
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, False]
    assert not (folder / "1/left.tmp").exists()


def test_a_run_that_serves_no_request_failed(kvarena: Run, tmp_path: Path) -> None:
    status, _, err = kvarena(*SIMULATED, "workload.rate=1", "memory.device_tokens=16")
    assert status == 1
    assert "none of its" in err.splitlines()[-1] and "memory.device_tokens" in err


@pytest.mark.e2e
def test_a_ladder_ends_at_saturation_and_is_resumed(
    kvarena: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Saturated from 3 conversations a second, says the summary; Ctrl-C comes at the third rung."""
    real, stop = serve.summarize, [4.0]

    def told(*rest: Any, **named: Any) -> dict[str, Any]:
        made = real(*rest, **named)
        rate = next(float(w.split("=")[1]) for w in made["run"]["overrides"] if w.startswith("workload.rate="))
        if rate == stop[0]:
            raise KeyboardInterrupt
        made["run"]["saturated"] = rate >= 3.0
        return made

    monkeypatch.setattr(serve, "summarize", told)
    monkeypatch.setattr("kvarena.framework.sweeps.ladder.AT_ONCE", 0.0)  # two conversations soon do
    words = ("experiment=throughput_latency", "system=vllm", "workload.limit=2", "tracking=none", "seed=0,1")
    ladder = ("hydra.sweeper.ladder.first=1", "hydra.sweeper.ladder.bisect=1", "hydra.sweeper.ladder.queue_share=1")
    assert kvarena(*words, *ladder)[0] == 130
    stop[0] = 0.0
    status, _, err = kvarena(*words, *ladder)
    assert (status, "resumes" in err) == (0, True), err
    (folder,) = (tmp_path / "runs/throughput_latency").iterdir()
    rungs = [summary(folder / str(job))["run"] for job in range(8)]
    rates = [next(w for w in run["overrides"] if "rate" in w).split("=")[1] for run in rungs]
    assert rates == ["1", "1", "2", "2", "4", "4", "2.828", "2.828"]
    assert [run["seed"] for run in rungs] == [0, 1] * 4
    assert not (folder / "8").exists()
