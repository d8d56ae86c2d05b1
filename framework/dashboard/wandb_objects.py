"""The sections as objects of wandb-workspaces. Building them asks no server."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from .sections import SYSTEM, Bars, Differences, Lines, Panel, Pictures, Points, SectionSpec

TITLE = "kvarena: KV-cache policies"
_INTRO = (
    "Runs of kvarena, one colour for each system. summary.json and the tables of a run are its artifact; "
    "framework/metrics/README.md defines every figure."
)


def workspace(entity: str, project: str, sections: Sequence[SectionSpec], sweeps: Sequence[str]) -> Any:
    """A ``Workspace`` of ``sections``, grouped by system, of the runs of ``sweeps`` (none: of the whole project)."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[
            ws.Section(name=spec.name, panels=[panel(p) for p in spec.panels], is_open=True) for spec in sections
        ],
        settings=ws.WorkspaceSettings(max_runs=50),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Config(SYSTEM)],
            filters=[ws.Metric("Group").isin(list(sweeps))] if sweeps else [],
            pinned_columns=[f"config:{SYSTEM}"],
        ),
    )


def report(entity: str, project: str, sections: Sequence[SectionSpec], sweeps: Sequence[str]) -> Any:
    """A ``Report`` with a chapter for each of ``sections``."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.P(_INTRO), wr.TableOfContents()]
    if sweeps:
        blocks.append(wr.P(f"Sweeps: {', '.join(sweeps)}"))
    for spec in sections:
        runs = wr.Runset(entity="", project="", name="runs", groupby=[f"config.{SYSTEM}"], filters=_groups(sweeps))
        blocks += [wr.H2(spec.name), wr.P(spec.text)]
        blocks.append(wr.PanelGrid(runsets=[runs], panels=[panel(p, i) for i, p in enumerate(spec.panels)]))
    return wr.Report(entity=entity, project=project, title=TITLE, description=_INTRO, blocks=blocks, width="fluid")


def _groups(sweeps: Sequence[str]) -> str:
    return f"Group in {list(sweeps)!r}" if sweeps else ""


def panel(spec: Panel, place: int = 0) -> Any:
    """The panel for ``spec``; ``place``: its number in a grid of three columns."""
    import wandb_workspaces.reports.v2 as wr

    layout = {"layout": wr.Layout(x=place % 3 * 8, y=place // 3 * 6, w=8, h=6)}
    match spec:
        case Bars(title, metrics):
            shown = [wr.SummaryMetric(name) for name in metrics]
            return wr.BarPlot(title=title, metrics=shown, groupby=wr.Config(SYSTEM), groupby_aggfunc="mean", **layout)
        case Points(title, x, y, config, log):
            across = wr.Config(x) if config else wr.SummaryMetric(x)
            return wr.ScatterPlot(title=title, x=across, y=wr.SummaryMetric(y), log_y=log, **layout)
        case Lines(title, axis, metrics):
            return wr.LinePlot(title=title, x=axis, y=list(metrics), **layout)
        case Pictures(keys):
            return wr.MediaBrowser(media_keys=list(keys), **layout)
        case Differences():
            return wr.RunComparer(diff_only=True, **layout)


def described(shown: Any) -> dict[str, Any]:
    """A workspace or report as plain values, as W&B would store it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = shown._to_model()
        plain: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return plain
