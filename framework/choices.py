"""Which choices of policies go together, and what executors are told of them."""

from __future__ import annotations

from dataclasses import dataclass

from .policy import Compression, Selection, TokenTruncation, Truncation
from .schema import ConfigError
from .task_knobs import ServeTask, TaskKnobs


@dataclass(frozen=True, slots=True)
class Lossy:
    """What changes the cache within a context; None where nothing does."""

    truncation: TokenTruncation | None = None
    selection: Selection | None = None
    compression: Compression | None = None

    @property
    def narrows(self) -> bool:
        """Contexts may take fewer slots than they have tokens."""
        return self.truncation is not None or self.compression is not None


def lossy(truncation: Truncation, compression: Compression) -> Lossy:
    """Those of the chosen policies that executors carry out."""
    return Lossy(
        truncation if isinstance(truncation, TokenTruncation) else None,
        truncation if isinstance(truncation, Selection) else None,
        compression if compression.packs else None,
    )


def check_task(task: TaskKnobs, *, backend: str) -> None:
    """Raise ConfigError, in one line, if ``backend`` cannot do what ``task`` asks for."""
    if isinstance(task, ServeTask) and task.quality_sample and backend == "simulated":
        found = f"task.quality_sample is {task.quality_sample:g}"
        raise ConfigError(f"{found}, but backend=simulated has no replies to judge: choose backend=torch")


def check_choices(
    truncation: Truncation, compression: Compression, *, backend: str, decoupled: bool, replays: bool
) -> None:
    """Raise ConfigError, in one line, if what was chosen does not go together.

    ``replays``: there are whole pages only, and no attention.
    """
    named = f"truncation={truncation.name}"
    within = isinstance(truncation, TokenTruncation | Selection)
    if replays and (within or compression.name != "none"):
        which = named if within else f"compression={compression.name}"
        raise ConfigError(f"{which}: task=replay knows whole pages only; serve or measure quality with it")
    if isinstance(truncation, Selection) and backend == "simulated":
        raise ConfigError(f"{named} chooses pages by the queries; backend=simulated has none")
    if isinstance(truncation, Selection) and decoupled:
        raise ConfigError(f"{named} bounds rotated keys; it needs backend.decoupled=false")
    if within and compression.shares:
        fits = "with truncations of whole contexts, or none"
        raise ConfigError(f"compression={compression.name} lets layers share K/V; it goes {fits}, not with {named}")
    if isinstance(truncation, Selection) and compression.packs:
        raise ConfigError(f"{named} reads pages of native K/V; it needs compression=none, not {compression.name}")
    if compression.packs and not within and truncation.name != "none":
        fits = "truncation=none or one that lets go of single tokens"
        raise ConfigError(f"compression={compression.name} goes with {fits}, not with {named}")
    if compression.packs and decoupled:
        raise ConfigError(f"compression={compression.name} stores rotated keys; it needs backend.decoupled=false")
    if not isinstance(truncation, TokenTruncation):
        return
    if truncation.positions == "cache" and not decoupled:
        raise ConfigError(f"{named} has truncation.positions=cache, which needs backend.decoupled=true")
    if truncation.positions == "true" and decoupled:
        raise ConfigError(f"{named} has truncation.positions=true, which needs backend.decoupled=false")
