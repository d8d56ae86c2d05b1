"""Which choices of policies go together, and what executors are told of them."""

from __future__ import annotations

from dataclasses import dataclass

from .policy import Compression, Selection, TokenTruncation, Truncation
from .schema import ConfigError


@dataclass(frozen=True, slots=True)
class Lossy:
    """What changes the cache within a context; None where nothing does."""

    truncation: TokenTruncation | None = None
    selection: Selection | None = None
    compression: Compression | None = None


def lossy(truncation: Truncation, compression: Compression) -> Lossy:
    """Those of the chosen policies that executors carry out."""
    return Lossy(
        truncation if isinstance(truncation, TokenTruncation) else None,
        truncation if isinstance(truncation, Selection) else None,
        None if compression.name == "none" else compression,
    )


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
    if isinstance(truncation, Selection) and compression.name != "none":
        raise ConfigError(f"{named} reads pages of native K/V; it needs compression=none, not {compression.name}")
    if compression.name != "none" and not within and truncation.name != "none":
        fits = "truncation=none or one that lets go of single tokens"
        raise ConfigError(f"compression={compression.name} goes with {fits}, not with {named}")
    if compression.name != "none" and decoupled:
        raise ConfigError(f"compression={compression.name} stores rotated keys; it needs backend.decoupled=false")
    if not isinstance(truncation, TokenTruncation):
        return
    if truncation.positions == "cache" and not decoupled:
        raise ConfigError(f"{named} has truncation.positions=cache, which needs backend.decoupled=true")
    if truncation.positions == "true" and decoupled:
        raise ConfigError(f"{named} has truncation.positions=true, which needs backend.decoupled=false")
