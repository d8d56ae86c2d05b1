"""The dashboard is built without a server, and shows only what runs log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvarena.framework.dashboard import command, main
from kvarena.framework.dashboard.sections import SECTIONS, Bars, Lines, Points
from kvarena.framework.metrics.tracking_rows import AXES, METRICS

pytest.importorskip("wandb_workspaces")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # wandb_workspaces' own, of Pydantic


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)


def _run(folder: Path, **sections: Any) -> None:
    (folder / "wandb" / "offline-run-1-a").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"schema": 1, "run": {"system": "vllm"}, **sections}))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two runs that served; nothing was judged or replayed."""
    for job in "01":
        _run(tmp_path / "runs" / "sweep-7" / job, latency={"ttft_s": {"p50": 1.0}}, quality=None)
    return tmp_path / "runs" / "sweep-7"


def _built(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    dashboard = json.loads(path.read_text())
    return dashboard["workspace"], dashboard["report"]


def test_a_sweep_is_described_where_it_lies(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep), "--entity", "team"]) == 0
    said = capsys.readouterr().out
    assert "WANDB_API_KEY is not set" in said
    assert "wandb sync runs/sweep-7/0/wandb/offline-run-* runs/sweep-7/1/wandb/offline-run-*" in said
    workspace, report = _built(sweep / "dashboard.json")
    assert (workspace["entity"], workspace["project"]) == ("team", "kvarena")
    section = workspace["spec"]["section"]
    names = [one["name"] for one in section["panelBankConfig"]["sections"]]
    assert names[:4] == ["Comparison over systems", "Latency and throughput", "Hit ratios", "Memory over time"]
    assert "Quality" not in names
    runs = section["runSets"][0]
    assert "sweep-7" in json.dumps(runs["filters"])
    assert "run.value.system" in json.dumps(runs["grouping"])
    text = json.dumps(report["spec"])
    assert all(name in text for name in names)
    assert text.count('"sweep-7"') >= len(names)


def test_judged_runs_have_a_section_of_quality(sweep: Path) -> None:
    _run(sweep / "2", latency={}, quality={"kl_nats": {"mean": 0.1}}, replay={})
    assert main([str(sweep)]) == 0
    text = (sweep / "dashboard.json").read_text()
    assert "quality/kl_nats/mean" in text
    assert "replay/hit_ratio" not in text


def test_a_project_shows_everything(tmp_path: Path) -> None:
    assert main(["mine", "--out", str(tmp_path / "there" / "d.json")]) == 0
    workspace, report = _built(tmp_path / "there" / "d.json")
    assert len(workspace["spec"]["section"]["panelBankConfig"]["sections"]) == len(SECTIONS)
    assert (workspace["project"], report["project"]["name"]) == ("mine", "mine")


def test_it_is_saved_where_a_key_is(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    saved = []
    for kind in (ws.Workspace, wr.Report):
        monkeypatch.setattr(kind, "save", lambda shown: saved.append(type(shown).__name__))
        monkeypatch.setattr(kind, "url", property(lambda shown: f"https://there/{type(shown).__name__}"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert main([str(sweep), "--entity", "team"]) == 0
    assert saved == ["Workspace", "Report"]
    assert capsys.readouterr().out == "saved: https://there/Workspace\nsaved: https://there/Report\n"
    assert not (sweep / "dashboard.json").exists()


def test_a_server_that_refuses_is_one_line(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> str:
        raise RuntimeError("project\nnot found")

    monkeypatch.setattr(command, "_default_entity", refuse)
    assert main([str(sweep), "--save"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "kvarena-dashboard: W&B did not save the dashboard: RuntimeError: project not found; are the"
    )
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["no/such"], 2, "no such folder: no/such"),
        (["empty"], 1, "no run (a folder with summary.json) in empty"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], status: int, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(arguments) == status
    assert capsys.readouterr().err == f"kvarena-dashboard: {line}\n"


def test_without_the_library_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([]) == 2
    assert "pip install 'kvarena[dashboard]'" in capsys.readouterr().err


def test_lines_show_what_runs_log_over_the_axis_it_has() -> None:
    for lines in _panels(Lines):
        assert lines.axis in AXES
        assert [METRICS[name][0] for name in lines.metrics] == [lines.axis] * len(lines.metrics)


def test_bars_and_points_show_sections_of_the_summary() -> None:
    known = {"latency", "throughput", "cache", "quality", "replay"}
    shown = {name for bars in _panels(Bars) for name in bars.metrics} | {points.y for points in _panels(Points)}
    assert {name.split("/")[0] for name in shown} == known


def _panels(kind: type) -> Iterator[Any]:
    return (panel for spec in SECTIONS for panel in spec.panels if isinstance(panel, kind))
