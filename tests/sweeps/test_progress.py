"""Progress over the jobs of a sweep, read from their folders."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from kvarena.framework import progress as of_jobs
from kvarena.framework.progress import RunProgress, WorkProgress, telling
from kvarena.framework.session import Progress
from kvarena.framework.sweeps import mark
from kvarena.framework.sweeps import progress as of_sweeps
from kvarena.framework.sweeps.progress import SweepProgress, SweepWatch, clock


def begin(folder: Path, done: float = 0.0, total: float | None = None) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".progress").write_text(json.dumps({"label": "vllm", "done": done, "total": total, "note": ""}))


def end(folder: Path, ok: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({"run": {"status": "ok" if ok else "failed"}}))
    mark(folder, ok=ok, seconds=2.0, overrides=())


def test_what_stands_and_how_long_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(of_sweeps.time, "monotonic", lambda: now_s[0])
    end(tmp_path / "0")  # by an earlier process: it tells nothing of how long a job takes
    watch = SweepWatch()
    watch.add(tmp_path / str(number) for number in range(6))
    assert str(watch.look()) == "1 of 6 jobs done"
    end(tmp_path / "1")
    end(tmp_path / "2", ok=False)
    begin(tmp_path / "3", 1, 2)
    now_s[0] += 50.0
    standing = watch.look()
    assert (standing.done, standing.failed, standing.running, standing.running_share) == (2, 1, 1, 0.5)
    assert standing.left_s == pytest.approx(50.0 / 2.5 * 2.5)
    assert str(standing) == "2 of 6 jobs done, 1 failed, 1 running, 0:00:50 left"
    assert [folder.name for folder in watch.running()] == ["3"]


def test_hours_minutes_and_seconds() -> None:
    assert [clock(5.4), clock(3725)] == ["0:00:05", "1:02:05"]


def test_a_job_of_a_sweep_tells_instead_of_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, told, out = [0.0], tmp_path / "told", io.StringIO()
    monkeypatch.setattr(of_jobs.time, "monotonic", lambda: now_s[0])
    console = Console(file=out, force_terminal=True)
    with telling(told):
        with RunProgress("vllm", "simulated", console) as run:
            run(Progress(now_s=1.0, requests=3, conversations=1, total_conversations=4))
            content = json.loads(told.read_text())
            assert (content["label"], content["done"], content["total"]) == ("vllm", 1, 4)
            run(Progress(now_s=1.0, requests=3, conversations=2, total_conversations=4))
            assert json.loads(told.read_text())["done"] == 1, "once a second"
        now_s[0] += 2.0
        with WorkProgress("quality", 8, console) as work:
            work.advance(2)
            assert json.loads(told.read_text())["done"] == 2
    assert not told.exists()
    assert out.getvalue() == ""


def test_a_folder_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    with telling(tmp_path / "gone/told"), WorkProgress("quality", 8) as work:
        work.advance(2)


def test_a_terminal_gets_a_bar_with_the_running_jobs_below(tmp_path: Path) -> None:
    out = io.StringIO()
    with SweepProgress(Console(file=out, force_terminal=True, width=120)) as shown:
        end(tmp_path / "0")
        begin(tmp_path / "1", 3, 4)
        shown.add([tmp_path / "0", tmp_path / "1", tmp_path / "2"])
        shown._show()
        assert shown._bar is not None
        shown._bar.refresh()
    assert "1/3" in out.getvalue() and "1 running" in out.getvalue()
    assert "1: vllm" in out.getvalue()


def test_elsewhere_a_line_comes_a_minute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with SweepProgress(Console(file=io.StringIO())) as shown:
        shown.add([tmp_path / "0"])
        shown._show()
    assert capsys.readouterr().err == "sweep: 0 of 1 jobs done\n"
