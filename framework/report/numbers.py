"""Numbers for people: few digits, units chosen once per column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unit:
    """How figures of one column are shown: ``value * factor`` with the unit ``name`` ("" for none)."""

    name: str
    factor: float = 1.0


def time_unit(values_s: Sequence[float], suffix: str = "") -> Unit:
    """Milliseconds if the largest of ``values_s`` is below 10 s, else seconds."""
    if max(values_s, default=0.0) < 10:
        return Unit(f"ms{suffix}", 1e3)
    return Unit(f"s{suffix}")


def count_unit(values: Sequence[float], noun: str) -> Unit:
    """``noun``, thousands or millions of it, so that ``values`` have at most five digits."""
    size = max(values, default=0.0)
    if size < 1e5:
        return Unit(noun)
    return Unit(f"k {noun}", 1e-3) if size < 1e8 else Unit(f"M {noun}", 1e-6)


def short(value: float) -> str:
    """Three significant digits or all integer digits, thousands separated: 0.0123, 1.23, 12.3, 123, 12,345."""
    size = abs(value)
    if size >= 100 or value == 0:
        return f"{value:,.0f}"
    if size < 1e-4:
        return f"{value:.2e}"
    decimals = next(n for n in range(7) if size * 10**n >= 99.95)
    return f"{value:.{decimals}f}"


def share(value: float) -> str:
    """A ratio as a percentage: 0.5%, 12.3%, 100%."""
    return f"{value * 100:.1f}%".replace(".0%", "%")


def aligned(value: float, like: str) -> str:
    """``value`` with as many decimals as the number ``like`` shows."""
    return f"{value:,.{len(like.partition('.')[2])}f}" if "e" not in like else short(value)
