"""Progress of a calibration: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kvarena.framework.calibrate import progress
from kvarena.framework.calibrate.progress import WorkProgress


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
