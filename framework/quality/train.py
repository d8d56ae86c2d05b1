"""Training of the small models that quality is judged on: what the scripts of all of them share."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..progress import WorkProgress

if TYPE_CHECKING:
    from ..execution.model_knobs import RandomModel
    from ..execution.trainee import Trainee

CARD, PAUSED = "card.json", "paused"


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids [rows, length], and which of them the loss is taken of."""

    tokens: NDArray[np.int64]
    wanted: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate over the steps: up in ``warmup`` steps, level, and down to 0 over the last ``cooling`` share."""

    steps: int
    rate: float
    warmup: int = 50
    cooling: float = 0.4

    def rate_at(self, step: int) -> float:
        """The learning rate of ``step`` (from 0)."""
        up, down = (step + 1) / self.warmup, (self.steps - step) / (self.cooling * self.steps)
        return self.rate * min(1.0, up, down)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training cost and ended at. ``seconds``: of work, pauses left out; ``loss``: mean over the last steps."""

    steps: int
    seconds: float
    loss: float


def train(
    trainee: Trainee,
    draw: Callable[[int], Batch],
    schedule: Schedule,
    folder: Path,
    label: str,
    *,
    pause_every_s: float = 30.0,
) -> Outcome:
    """Train ``trainee`` on ``draw(step)`` of every step. An interrupted training goes on from what ``folder`` holds.

    Parameters
    ----------
    draw: depends on nothing but the step, so that a training that was interrupted ends with the same weights.
    folder: of the checkpoint; its subfolder ``paused`` goes when the card is written.
    pause_every_s: how often the state is written there.
    """
    folder = folder / PAUSED
    done = trainee.resume(folder) or {"step": 0, "seconds": 0.0, "loss": None}
    began, saved = time.perf_counter() - done["seconds"], time.perf_counter()
    with WorkProgress(label, schedule.steps) as progress:
        progress.advance(done["step"])
        for step in range(done["step"], schedule.steps):
            batch = draw(step)
            loss = trainee.step(batch.tokens, batch.wanted, schedule.rate_at(step))
            smooth = loss if done["loss"] is None else 0.95 * done["loss"] + 0.05 * loss
            done = {"step": step + 1, "seconds": time.perf_counter() - began, "loss": smooth}
            progress.note(f"step {step + 1} of {schedule.steps}, loss {smooth:.3f}")
            progress.advance()
            if time.perf_counter() - saved > pause_every_s or step + 1 == schedule.steps:
                trainee.pause(folder, done)
                saved = time.perf_counter()
    return Outcome(schedule.steps, float(done["seconds"]), float(done["loss"] or 0.0))


def arguments(about: str) -> ArgumentParser:
    """The options that all training scripts share."""
    parser = ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and its card")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (default: 0)")
    parser.add_argument("--steps", type=int, default=None, help="fewer or more steps than the recipe's")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (default: one per CPU)")
    return parser


def set_threads(threads: int) -> None:
    """How many threads torch computes with: sums depend on it in their last bits."""
    import torch

    torch.set_num_threads(threads)


def write_card(
    folder: Path, script: str, given: Namespace, model: RandomModel, outcome: Outcome, about: Mapping[str, Any]
) -> None:
    """Say in ``folder`` what the checkpoint is, how it was made (``given``: :func:`arguments`) and what it scores; the
    training is then over."""
    import torch

    card = {
        "script": script,
        "seed": given.seed,
        "steps": outcome.steps,
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(outcome.seconds, 1),
        "threads": given.threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "loss": round(outcome.loss, 4),
        "model": asdict(model),
        **about,
    }
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    shutil.rmtree(folder / PAUSED, ignore_errors=True)


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a checkpoint folder."""
    return dict(json.loads((folder / CARD).read_text()))
