"""What a run is called: its label, and its place in a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points

from .paths import CONF_GROUP, system_families
from .policy import FAMILIES


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One job as the command line sees it.

    Attributes
    ----------
    label: the system, and ``+family=option`` for each family that differs from what the system picks.
    choices: the option of each config group.
    overrides: the job's command line.
    sweep: the name of the sweep's folder; None for a single run. ``job``: the number in it.
    """

    label: str
    choices: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    sweep: str | None = None
    job: int | None = None


def run_label(choices: Mapping[str, str]) -> str:
    """The label of a run with these options, so that an ablation is never merged with its system."""
    system = choices.get("system", "custom")
    picked = system_families(system, entry_points(group=CONF_GROUP))
    differing = [family for family in FAMILIES if choices.get(family) not in (None, picked.get(family))]
    return "".join([system, *(f"+{family}={choices[family]}" for family in differing)])
