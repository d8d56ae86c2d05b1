"""The comparison with vLLM as files: a table to read, one to compute with, and the distributions side by side."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..metrics.files import replace_text

if TYPE_CHECKING:
    from .vllm import VllmFidelity

NAMES = {"ttft": "TTFT", "tpot": "TPOT", "latency": "latency"}
_HEADERS = ("figure", "real [ms]", "simulated [ms]", "error", "goal", "")


def write_vllm(found: VllmFidelity, folder: Path) -> None:
    """Write ``vllm.md``, ``vllm.csv`` and ``figures/vllm.png`` into ``folder``.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "vllm.md", markdown(found))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("metric", "statistic", "real_s", "simulated_s", "error", "goal", "reached"))
    for row in found.rows:
        figures = (row.real_s, row.simulated_s, row.error, row.goal)
        writer.writerow((row.metric, row.statistic, *(f"{figure:.6g}" for figure in figures), row.reached))
    replace_text(folder / "vllm.csv", out.getvalue())
    (folder / "figures").mkdir(exist_ok=True)
    draw_vllm(found, folder / "figures" / "vllm.png")


def markdown(found: VllmFidelity) -> str:
    """The table, with what it compares and what was fitted."""
    lines = [f"# Simulated against real vLLM\n\n{found.about}.", "", _line(_HEADERS), _line(["---"] * len(_HEADERS))]
    for row in found.rows:
        verdict = "" if row.reached else "missed"
        figures = (f"{row.real_s * 1e3:.1f}", f"{row.simulated_s * 1e3:.1f}", f"{row.error:+.2%}", f"{row.goal:.1%}")
        lines.append(_line((f"{NAMES[row.metric]} {row.statistic}", *figures, verdict)))
    reached = sum(row.reached for row in found.rows)
    lines.append(
        f"\n{reached} of {len(found.rows)} within their goal. Fitted: {found.overhead_s * 1e3:.3f} ms per iteration,"
        " so that the mean latency of the first 30 requests is met; nothing else."
    )
    return "\n".join(lines) + "\n"


def draw_vllm(found: VllmFidelity, path: Path) -> None:
    """Cumulative distributions of TTFT, TPOT and latency, real and simulated."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric in zip(figure.subplots(1, 3), NAMES, strict=True):
        _draw(axes, found, metric)
    figure.suptitle(found.about, fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _draw(axes: Any, found: VllmFidelity, metric: str) -> None:
    for label, latencies, colour in (("real", found.real, "#1b1b1b"), ("simulated", found.simulated, "#d1495b")):
        values = np.sort(getattr(latencies, f"{metric}_s"))
        axes.step(values, np.arange(1, len(values) + 1) / len(values), where="post", color=colour, label=label, lw=1.5)
    axes.set_xlabel(f"{NAMES[metric]} [s]")
    axes.set_ylabel("share of requests")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False)
    errors = ", ".join(f"{row.statistic} {row.error:+.1%}" for row in found.rows if row.metric == metric)
    axes.set_title(errors, fontsize=8)


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
