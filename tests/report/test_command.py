"""``kvarena-report``: finds the runs, puts sweeps together, says in one line what is wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvarena.framework.report.command import main, run_folders

RunMaker = Callable[..., Path]
STORED = Path(__file__).parent / "stored"


def test_a_sweep_is_written_again_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Path(shutil.copytree(STORED / "replayed", tmp_path / "sweep"))
    assert main([str(sweep), "--figures", "none"]) == 0
    shown = capsys.readouterr().out
    assert "s3fifo" in shown
    assert shown.rstrip().endswith("comparison.html")
    for name in ("comparison.html", "comparison.md", "comparison.csv"):
        assert "s3fifo" in (sweep / name).read_text()


def test_several_sweeps_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [str(STORED / name) for name in ("served", "replayed")]
    assert main([*folders, "--quiet", "--figures", "none", "--baseline", "pensieve"]) == 0
    text = (tmp_path / "report/comparison.md").read_text()
    assert "improvement over pensieve" in text
    assert "s3fifo" in text
    assert not (tmp_path / "report/figures").exists()


def test_runs_are_found_in_order_of_jobs(make_run: RunMaker, tmp_path: Path) -> None:
    for job in (0, 2, 10):
        make_run("vllm", folder=f"sweep/{job}", count=8)
    (tmp_path / "sweep/2/inner").mkdir()
    shutil.copy(tmp_path / "sweep/2/summary.json", tmp_path / "sweep/2/inner")
    assert [folder.name for folder in run_folders(tmp_path)] == ["0", "2", "10"]
    assert run_folders(tmp_path / "sweep/2") == [tmp_path / "sweep/2"]


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["gone"], 2, "no such folder: gone"),
        (["empty"], 1, "no run (a folder with summary.json) in empty"),
        (
            [str(STORED / "served"), "--out", "out", "--figures", "none", "--baseline", "vlm"],
            2,
            "no setting has just one row",
        ),
        ([str(STORED / "replayed"), "--figures", "none", "--out", "file/x"], 2, "cannot write"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], status: int, line: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert main(arguments) == status
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"kvarena-report: {line}")


def test_help_helps_and_is_light() -> None:
    code = (
        "import sys\nfrom kvarena.framework.report.command import main\n"
        "try:\n    main(['--help'])\nfinally:\n    print(sorted({'torch', 'matplotlib', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(part in done.stdout for part in ("--baseline", "examples:", "comparison.html", "--out DIR"))
    assert done.stdout.rstrip().endswith("[]")
