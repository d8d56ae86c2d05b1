"""The comparison for people and programs: rich, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from .compare import MEAN_GOAL, Pair, Row
from .vllm_report import markdown as vllm_markdown

if TYPE_CHECKING:
    from rich.table import Table

    from .vllm import VllmFidelity

HEADERS = ("system", "figure", "real", "least .. greatest", "simulated", "error", "goal", "verdict")
WORDS = {"goal": "within the goal", "spread": "within the real spread", "missed": "MISSED"}
COLOURS = {"goal": "green", "spread": "yellow", "missed": "bold red"}


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What was compared. ``rows``, ``pairs``: this machine's runs; ``vllm``: vLLM's, where they were given."""

    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    rounds: int
    about: str
    vllm: VllmFidelity | None = None

    @property
    def missed(self) -> list[Row]:
        """Rows that are neither within their goal nor within the spread of the real runs."""
        return [row for row in self.rows if row.verdict == "missed"]

    @property
    def broken(self) -> list[Pair]:
        """Systems that the simulation puts in another order than all real runs do."""
        return [pair for pair in self.pairs if not pair.kept]

    @property
    def unrest(self) -> float:
        """By how much real runs of one system differ from each other: half the width of the spread of a mean latency,
        as a share of it; the median over systems and metrics."""
        widths = [(high - low) / 2 for row in self.rows if row.statistic == "mean" for low, high in [row.spread]]
        return median(widths) if widths else 0.0

    def verdicts(self) -> list[str]:
        """What came of it, a line each."""
        lines = []
        if self.rows:
            verdicts = [row.verdict for row in self.rows]
            goal, spread = verdicts.count("goal"), verdicts.count("spread")
            lines.append(
                f"{len(self.rows)} figures: {goal} within their goal, {spread} more within the spread of "
                f"{self.rounds} real runs, {len(self.missed)} missed"
            )
            lines.append(
                f"{len(self.pairs)} orders of two systems in which all real runs agree: "
                f"{len(self.pairs) - len(self.broken)} kept by the simulation"
            )
        if self.unrest > MEAN_GOAL:
            lines.append(
                f"the real runs themselves differ by +-{self.unrest:.0%} in their means: this machine was not quiet"
            )
        lines += [f"{p.metric}: {p.faster} before {p.slower}, simulated the other way round" for p in self.broken]
        return lines

    def section(self) -> dict[str, Any]:
        """The ``fidelity`` section of ``summary.json``; SI units, errors relative (of hit ratios: differences)."""
        found: dict[str, Any] = {
            "rounds": self.rounds,
            "rows": [_row_figures(row) for row in self.rows],
            "orders": [
                {"metric": p.metric, "faster": p.faster, "slower": p.slower, "kept": p.kept} for p in self.pairs
            ],
            "missed": len(self.missed),
            "unrest": self.unrest,
            "orders_broken": len(self.broken),
        }
        if self.vllm is not None:
            found["vllm"] = _vllm_section(self.vllm)
        return found

    def markdown(self) -> str:
        """The content of ``fidelity.md``."""
        lines = ["# Fidelity of the simulator", ""]
        if self.rows:
            lines += [f"Against this machine: {self.about}.", ""]
            lines += [_line(HEADERS), _line(["---", "---", *["---:"] * 5, "---"])]
            lines += [*(_line(_cells(row)) for row in self.rows), ""]
            lines += [*(f"- {line}" for line in self.verdicts()), "", "![fidelity](figures/fidelity.png)", ""]
        if self.vllm is not None:
            lines += ["#" + vllm_markdown(self.vllm), "![vllm](figures/vllm.png)"]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """The content of ``fidelity.csv``: a row per figure, SI units."""
        out = io.StringIO()
        names = list(_row_figures(self.rows[0])) if self.rows else []
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({**_row_figures(row), "real": " ".join(f"{value:.9g}" for value in row.real)})
        return out.getvalue()

    def rich(self) -> Table:
        """The table for a terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table

        shown = Table(box=SIMPLE_HEAD, show_edge=False, title=escape(self.about), title_justify="left")
        for i, header in enumerate(HEADERS):
            shown.add_column(header, justify="right" if 2 <= i <= 6 else "left")
        before = None
        for row in self.rows:
            name, *cells, verdict = (escape(cell) for cell in _cells(row))
            colour = COLOURS[row.verdict]
            shown.add_row("" if name == before else name, *cells, f"[{colour}]{verdict}[/{colour}]")
            before = name
        shown.caption, shown.caption_justify = "\n".join(self.verdicts()), "left"
        return shown


def vllm_table(found: VllmFidelity) -> Table:
    """The comparison with vLLM for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=SIMPLE_HEAD, show_edge=False, title=escape(found.about), title_justify="left")
    for i, header in enumerate(("figure", "real, ms", "simulated, ms", "error", "goal", "verdict")):
        shown.add_column(header, justify="right" if 1 <= i <= 4 else "left")
    for row in found.rows:
        verdict = "goal" if row.reached else "missed"
        times = (f"{1e3 * row.real_s:.1f}", f"{1e3 * row.simulated_s:.1f}")
        errors = (f"{row.error:+.2%}", f"{row.goal:.1%}")
        colour = COLOURS[verdict]
        shown.add_row(f"{row.metric} {row.statistic}", *times, *errors, f"[{colour}]{WORDS[verdict]}[/{colour}]")
    shown.caption_justify = "left"
    shown.caption = f"fitted: {1e3 * found.overhead_s:.3f} ms per iteration, to the first 30 requests; nothing else"
    return shown


def _vllm_section(found: VllmFidelity) -> dict[str, Any]:
    rows = [
        {
            "metric": row.metric,
            "statistic": row.statistic,
            "real": row.real_s,
            "simulated": row.simulated_s,
            "error": row.error,
            "goal": row.goal,
            "reached": row.reached,
        }
        for row in found.rows
    ]
    times_from = dict(found.times_from)
    return {"about": found.about, "overhead_s": found.overhead_s, "times_from": times_from, "rows": rows}


def _row_figures(row: Row) -> dict[str, Any]:
    low, high = row.spread
    return {
        "system": row.system,
        "metric": row.metric,
        "statistic": row.statistic,
        "real": list(row.real),
        "real_median": row.centre,
        "spread_low": low,
        "spread_high": high,
        "simulated": row.simulated,
        "error": row.error,
        "goal": row.goal,
        "verdict": row.verdict,
    }


def _cells(row: Row) -> list[str]:
    low, high = row.spread
    name = f"{row.metric} {row.statistic}" + ("" if row.ratio else ", ms")
    return [
        row.system,
        name,
        _value(row, row.centre),
        f"{_share(row, low)} .. {_share(row, high)}",
        _value(row, row.simulated),
        _share(row, row.error),
        f"{100 * row.goal:.0f} {'points' if row.ratio and row.goal > 0.01 else 'point' if row.ratio else '%'}",
        WORDS[row.verdict],
    ]


def _value(row: Row, value: float) -> str:
    return f"{value:.3f}" if row.ratio else f"{1e3 * value:.4g}"


def _share(row: Row, error: float) -> str:
    return f"{100 * error:+.1f}" if row.ratio else f"{100 * error:+.1f} %"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
