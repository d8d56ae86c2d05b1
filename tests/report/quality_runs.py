"""Folders of quality runs with invented figures, written as the task writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvarena.framework.quality.measures import StepMeasures
from kvarena.framework.quality.results import MeasuredTurn, reference_section, rows, section, write_rows

TASKS = ("passkey", "multi_key", "multi_hop", "associative", "copy", "multi_turn")
KV_BYTES = 1024.0


def measured_turn(
    task: str, episode: int, right: bool, kl: float, share: float, steps: int = 3, *, referred: bool = True
) -> MeasuredTurn:
    """A turn of which every step costs the same."""
    full = (7, 0.01) if referred else (None, None)
    step = StepMeasures(
        token=7, chosen=7 if right else 8, bits=0.1 if right else 6.0,
        reference_chosen=full[0], reference_bits=full[1], kl_nats=kl if referred else None,
        attention_error=(kl, 2 * kl) if referred else None, recall=1 - kl / 10 if referred else None,
        context_tokens=256, held_tokens=256 * share, kv_bytes=256 * share * KV_BYTES, state_bytes=0.0,
    )  # fmt: skip
    exact = None if task == "perplexity" else float(right)
    whole = None if task == "perplexity" or not referred else 1.0
    return MeasuredTurn(task, 256, episode, 0, (step,) * steps, exact, whole, KV_BYTES)


def turns(
    skill: float, budget: float, seed: int, tasks: Sequence[str] = TASKS, episodes: int = 16
) -> list[MeasuredTurn]:
    """Turns of a policy that is right the more often the more it keeps; ``skill``: 0, by lot, to 1, always."""
    found = []
    for task in tasks:
        rng = np.random.default_rng([seed, len(task)])  # one luck for all policies: they are paired
        for episode, luck in enumerate(rng.random(episodes)):
            chance = budget ** (1.2 * (1.001 - skill))
            found.append(measured_turn(task, episode, luck < chance, 4.0 * (1 - chance), budget))
    return found


def write_quality(
    folder: Path,
    policy: str,
    points: dict[float | None, list[MeasuredTurn]],
    seed: int = 0,
    system: str = "",
    overrides: Sequence[str] = (),
) -> Path:
    """The folder of a run of ``task=quality``."""
    folder.mkdir(parents=True)
    run = {
        "seed": seed, "backend": "torch", "system": system or f"vllm+truncation={policy}", "workload": "quality",
        "model": "recall", "hardware": "local", "status": "ok", "version": "0.1.0", "task": "quality",
        "policies": {"truncation": {"name": policy, "oracle": policy == "future"}}, "overrides": list(overrides),
    }  # fmt: skip
    shown = [
        {"truncation": policy, "compression": "none", "budget": budget, "speed": None, **section(found)}
        for budget, found in points.items()
    ]
    quality = {
        "protocol": "query_aware", "lengths": [256], "episodes": 16, "top_keys": 16, "kv_bytes_per_token": KV_BYTES,
        "reference": reference_section(next(iter(points.values()))), "points": shown,
    }  # fmt: skip
    content = {"schema": 1, "run": run, "workload": {"requests": 50}, "quality": quality}
    (folder / "summary.json").write_text(json.dumps(content))
    write_rows(folder / "quality.parquet", (row for budget, found in points.items() for row in rows(found, budget)))
    return folder
