"""Progress: lines now and then where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kvarena.framework import progress
from kvarena.framework.progress import RunProgress, WorkProgress
from kvarena.framework.session import Progress


def test_lines_come_at_intervals_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with RunProgress("vllm", "simulated", Console(file=io.StringIO())) as shown:
        for second in range(25):
            now[0] = float(second)
            shown(Progress(now_s=60.0 * second, requests=second, conversations=2, total_conversations=9))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "vllm: 2/9 conversations, 10 requests, simulated time 600 s",
        "vllm: 2/9 conversations, 20 requests, simulated time 1200 s",
    ]


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    with RunProgress("vllm", "run", Console(file=out, force_terminal=True, width=120)) as shown:
        shown(Progress(now_s=1.0, requests=3, conversations=1, total_conversations=4))
    assert "vllm" in out.getvalue()
    assert "1/4" in out.getvalue()


def test_a_terminal_gets_a_bar_with_a_note() -> None:
    out = io.StringIO()
    with WorkProgress("calibrate", 10, Console(file=out, force_terminal=True, width=100)) as bar:
        bar.note("batches")
        bar.advance(5)
        assert bar._bar is not None
        (task,) = bar._bar.tasks
        assert (task.completed, task.total, task.fields["note"]) == (5, 10, "batches")
        bar.plan(20)
        assert task.total == 20


def test_elsewhere_a_line_comes_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_s[0])
    with WorkProgress("fidelity", 8, Console(file=io.StringIO())) as bar:
        bar.advance()
        assert capsys.readouterr().err == ""
        now_s[0] += 11
        bar.note("round 1")
        bar.advance(3)
        now_s[0] += 11
        bar.advance(0)
    assert capsys.readouterr().err.splitlines() == ["fidelity: 12% round 1", "fidelity: 50% round 1"]
