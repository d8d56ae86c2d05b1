"""What a calibration leaves for people: a table, a figure, and the section of ``summary.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..execution.tables import Grid, OperatorTables
from .checks import Check
from .fitting import noise
from .measure import Measured

if TYPE_CHECKING:
    from rich.table import Table

HEADERS = ("what", "measured", "result", "spread")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured, the tables made of it, and how they did on batches that are not in them."""

    measured: Measured
    tables: OperatorTables
    checks: tuple[Check, ...]

    @property
    def error(self) -> float:
        """Mean of the absolute relative errors of the checks."""
        return float(np.mean([abs(check.error) for check in self.checks]))

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The cells under :data:`HEADERS`."""
        noises, found = noise(self.measured.times_s), self.measured
        dense, head = self.tables.dense, self.tables.head
        assert dense is not None and head is not None
        return [
            ("dense layers", f"1 .. {dense.x[-1]:.0f} tokens", _range(dense.seconds), _percent(noises["dense"])),
            ("head", f"1 .. {head.x[-1]:.0f} rows", _range(head.seconds), _percent(noises["head"])),
            (
                "attention, prefill",
                *_grid(self.tables.attention.prefill, "queries, context"),
                _percent(noises["prefill"]),
            ),
            ("attention, decode", *_grid(self.tables.attention.decode, "sequences, keys"), _percent(noises["decode"])),
            ("engine", f"{found.engine.iterations} iterations", self._engine(), _percent(found.engine.spread)),
            ("host link", "copies alone and both ways", self._host(), ""),
            ("disk", "a small tier", self._disk(), ""),
            ("memory", "a copy", f"{found.memory_bytes_per_s / 1e9:.3g} GB/s", ""),
            ("mixed batches", f"{len(self.checks)}, not in the tables", self._checks(), _percent(noises["mixed"])),
        ]

    def section(self) -> dict[str, Any]:
        """The ``calibration`` section of ``summary.json``. SI units; ``noise``: as ``spread`` in the table."""
        found = self.measured
        return {
            "source": self.tables.source,
            "passes": found.passes,
            "batches": len(found.times_s),
            "noise": noise(found.times_s),
            "engine": asdict(found.engine),
            "links": asdict(self.tables.links),
            "memory_bytes_per_s": found.memory_bytes_per_s,
            "checks": [
                {"batch": str(c.probe), "measured_s": c.measured_s, "simulated_s": c.simulated_s, "error": c.error}
                for c in self.checks
            ],
            "problems": list(found.problems),
        }

    def markdown(self) -> str:
        """The content of ``calibration.md``."""
        lines = ["# Calibration", "", self.tables.source, "", _line(HEADERS), _line(["---"] * len(HEADERS))]
        lines += [_line(row) for row in self.rows()]
        lines += ["", "| mixed batch | measured, ms | simulated, ms | error |", "|---|---:|---:|---:|"]
        lines += [
            _line((str(c.probe), f"{1e3 * c.measured_s:.2f}", f"{1e3 * c.simulated_s:.2f}", f"{c.error:+.1%}"))
            for c in self.checks
        ]
        lines += [
            "",
            *(f"- {problem}" for problem in self.measured.problems),
            "![calibration](figures/calibration.png)",
        ]
        return "\n".join(lines) + "\n"

    def rich(self) -> Table:
        """The table for a terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table

        shown = Table(box=SIMPLE_HEAD, show_edge=False, title=escape(self.tables.source), title_justify="left")
        for header in HEADERS:
            shown.add_column(header)
        for row in self.rows():
            shown.add_row(*(escape(cell) for cell in row))
        shown.caption = f"spread: half the distance of the quartiles; {self.measured.passes} passes over all batches"
        shown.caption_justify = "left"
        return shown

    def _engine(self) -> str:
        engine = self.measured.engine
        parts = (f"{1e3 * seconds:.2g} ms" for seconds in (engine.iteration_s, engine.sequence_s, engine.prompt_s))
        return "{} + {} a sequence + {} a prompt".format(*parts)

    def _host(self) -> str:
        host = self.measured.host
        lost = f"{host.duplex_loss:.0%} lost both ways"
        return f"{host.bytes_per_s / 1e9:.3g} GB/s after {1e3 * host.latency_s:.2g} ms, {lost}"

    def _disk(self) -> str:
        if self.measured.disk is None:
            return "not measured"
        read, write, latency_s = self.measured.disk
        return f"{read / 1e9:.3g} GB/s read, {write / 1e9:.3g} written, after {1e3 * latency_s:.2g} ms"

    def _checks(self) -> str:
        worst = max((abs(check.error) for check in self.checks), default=0.0)
        return f"simulated within {self.error:.1%} on average, {worst:.1%} at worst"


def _grid(grid: Grid | None, axes: str) -> tuple[str, str]:
    assert grid is not None
    first, second = (f"{axis[0]:.0f} .. {axis[-1]:.0f}" for axis in grid.axes)
    names = axes.split(", ")
    return f"{first} {names[0]}, {second} {names[1]}", _range(grid.seconds[~np.isnan(grid.seconds)])


def _range(seconds: Any) -> str:
    return f"{1e3 * float(np.min(seconds)):.3g} .. {1e3 * float(np.max(seconds)):.3g} ms"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
