"""Measured operator times of one model on one machine: what a table-driven cost model is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..contract import ModelShape
from ..hardware import Hardware
from .curves import Curve, Floats, Grid


@dataclass(frozen=True, slots=True)
class Uneven:
    """What decoding sequences of unequal length cost beyond equal ones of the same sum: seconds per token by which the
    longest exceeds the mean. Negative where the even batch is the slower one.

    Attributes
    ----------
    axes: ``sequences``, and ``share`` = (mean - shortest) / (longest - shortest) in [0, 1]; for batches that hold a
        prompt too: its ``queries``, ``sequences``, ``share`` and the mean ``keys``.
    seconds: [len(axes[0]), len(axes[1]), ...] per token, finite.
    """

    axes: tuple[Floats, ...]
    seconds: Floats

    def __post_init__(self) -> None:
        if self.seconds.shape != tuple(len(axis) for axis in self.axes) or not self.seconds.size:
            raise ValueError(
                f"seconds of shape {self.seconds.shape} must fit {[len(axis) for axis in self.axes]} points"
            )
        if not np.isfinite(self.seconds).all() or any((np.diff(axis) <= 0).any() for axis in self.axes):
            raise ValueError("seconds must be finite and axes strictly increasing")


@dataclass(frozen=True, slots=True)
class AttentionTables:
    """Attention of all layers together, in seconds; its launches included. None: not measured.

    Attributes
    ----------
    prefill: one segment alone, over (queries, tokens of context before them).
    decode: equal sequences of one query each, over (sequences, keys that each sees).
    prefills: several equal prompts without context in one batch, over (sequences, queries of each).
    mixed: one prefill segment together with equal decoding sequences, over (queries, context before them, sequences,
        keys that each sees).
    uneven_decode: corrects ``decode`` for sequences of unequal length, over (sequences, share).
    uneven_mixed: corrects ``mixed``, over (queries, sequences, share, mean keys).
    """

    prefill: Grid | None = None
    decode: Grid | None = None
    prefills: Grid | None = None
    mixed: Grid | None = None
    uneven_decode: Uneven | None = None
    uneven_mixed: Uneven | None = None

    def __post_init__(self) -> None:
        known = {"prefill": 2, "decode": 2, "prefills": 2, "mixed": 4, "uneven_decode": 2, "uneven_mixed": 4}
        for name, axes in known.items():
            grid: Grid | Uneven | None = getattr(self, name)
            if grid is not None and len(grid.axes) != axes:
                raise ValueError(f"{name} has {len(grid.axes)} axes, expected {axes}")


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """Measured rates of host link and disk; None: the hardware file's. Bytes/s, seconds and shares of bandwidth."""

    host_bytes_per_s: float | None = None
    host_latency_s: float | None = None
    duplex_loss: float | None = None
    disk_read_bytes_per_s: float | None = None
    disk_write_bytes_per_s: float | None = None
    disk_latency_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("host_bytes_per_s", "disk_read_bytes_per_s", "disk_write_bytes_per_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}={value!r} must be in (0, inf)")
        for name, most in (("host_latency_s", float("inf")), ("disk_latency_s", float("inf")), ("duplex_loss", 1.0)):
            value = getattr(self, name)
            if value is not None and not 0 <= value < most:
                raise ValueError(f"{name}={value!r} must be in [0, {most:g})")

    def on(self, hardware: Hardware) -> Hardware:
        """``hardware`` with the rates that were measured."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        if "host_bytes_per_s" in known:
            known["host_link_bytes_per_s"] = known.pop("host_bytes_per_s") / hardware.host_links
        if "host_latency_s" in known:
            known["host_link_latency_s"] = known.pop("host_latency_s")
        return replace(hardware, **known)


@dataclass(frozen=True, slots=True)
class OperatorTables:
    """Times of whole iterations, all layers together, tensor parallelism over ``devices`` included.

    Attributes
    ----------
    source: who measured it, on what, when; one line.
    shape: of the model that was measured.
    dense: tokens of the batch -> everything in the layers but attention, and what precedes them.
    head: sampled rows -> final norm, LM head and sampling.
    iteration_s, sequence_s: engine time per iteration, and per sequence in it, outside the model. None: not measured.
    prompt_s: what admitting and publishing add for each prompt in it; None: nothing.
    unmeasured: operators that the tables lack and that ``dense``, ``head`` or ``attention`` took from the roofline.
    """

    source: str
    shape: ModelShape
    devices: int = 1
    dense: Curve | None = None
    head: Curve | None = None
    attention: AttentionTables = AttentionTables()
    iteration_s: float | None = None
    sequence_s: float | None = None
    prompt_s: float | None = None
    links: LinkTimes = LinkTimes()
    unmeasured: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"devices={self.devices!r} must be >= 1")
        for name in ("iteration_s", "sequence_s", "prompt_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value!r} must be in [0, inf)")

    def save(self, folder: Path) -> None:
        """Write ``operators.parquet`` and ``meta.json`` into ``folder``, which is made; :func:`.load_tables` reads
        them back.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        from .own import save

        save(self, folder)
