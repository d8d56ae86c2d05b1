"""The calls to wandb. Any of them may fail or hang; who calls bounds that."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tracking_rows import AXES, METRICS
from .tracking_summary import SummaryTable, flat, tables

FILES = ("summary.json", "timeline.json", "*.parquet")
MOST_FIGURES = 50


def open_run(arguments: Mapping[str, Any], start_timeout_s: float, finish_timeout_s: float) -> Any:
    """Begin a run with the ``arguments`` of ``wandb.init``; its metrics and their axes are known from the start."""
    import wandb

    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=start_timeout_s,
        finish_timeout=finish_timeout_s,
    )
    run = wandb.init(**arguments, reinit="create_new", settings=settings)
    for axis in AXES:
        run.define_metric(axis, summary="max", hidden=True)
    for name, (axis, kept) in METRICS.items():
        run.define_metric(name, step_metric=axis, summary=kept)
    return run


def log_summary(run: Any, summary: Mapping[str, Any]) -> None:
    """The figures of ``summary`` as the run's own, distributions and lists as tables."""
    import wandb

    def shown(table: SummaryTable) -> Any:
        return wandb.Table(columns=table.columns, data=table.rows)

    run.log({table.name: shown(table) for table in tables(summary)})
    run.summary.update(flat(summary))


def log_figures(run: Any, folder: Path) -> None:
    """Each picture in ``folder/figures``: PNG as an image, SVG, which W&B takes for none, as a page."""
    import wandb

    found: dict[str, Any] = {}
    for path in sorted((folder / "figures").iterdir())[:MOST_FIGURES]:
        if path.suffix == ".png":
            found[f"figures/{path.stem}"] = wandb.Image(str(path), caption=path.stem.replace("_", " "))
        elif path.suffix == ".svg":
            found[f"figures/{path.stem}"] = wandb.Html(path.read_text(), inject=False)
    if found:
        run.log(found)


def log_files(run: Any, folder: Path) -> None:
    """The tables, the timeline and the summary of ``folder`` as one artifact, by reference: nothing is copied."""
    import wandb

    paths = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    if not paths:
        return
    artifact = wandb.Artifact(f"run-{run.id}", type="run", description="What kvarena left of this run")
    for path in paths:
        artifact.add_file(str(path), policy="immutable", skip_cache=True)
    run.log_artifact(artifact)


def kill_service() -> None:
    """End wandb's own process, which this one started, at once, so that leaving does not wait for it; the next run
    starts another."""
    service = None
    with contextlib.suppress(Exception):
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib.service import service_token

        setup = wandb_setup._singleton
        if setup is not None and (connection := setup._connection) is not None:
            service, setup._connection = connection._proc, None
            connection._cleanup()  # takes its exit hook away, which would wait
        service_token.clear_service_in_env()
    for pid in _services():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    if service is not None:
        with contextlib.suppress(Exception):
            service._process.wait(5)


def _services() -> list[int]:
    """The wandb-core processes that are children of this one."""
    found, me = [], os.getpid()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            if name == "wandb-core" and int(rest.split()[1]) == me:
                found.append(int(stat.parent.name))
    return found
