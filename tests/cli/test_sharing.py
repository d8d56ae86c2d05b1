"""``compression=kvsharer`` as a user sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]
SIMULATED = ("backend=simulated", "model=tiny", "hardware=h100", "tracking=none", "workload.limit=1")


def summary() -> dict[str, Any]:
    newest = max(Path().glob("runs/**/summary.json"), key=lambda path: path.stat().st_mtime_ns)
    found: dict[str, Any] = json.loads(newest.read_text())
    return found


def test_half_the_layers_take_half_the_bytes(kvarena: Run) -> None:
    def peak(*words: str) -> int:
        assert kvarena(*SIMULATED, "memory.device_tokens=65536", *words)[0] == 0
        return int(summary()["device"]["peak_kv_bytes"])

    whole = peak()
    assert "layer_map" not in summary()["run"]
    assert peak("compression=kvsharer", "compression.layer_map={1:0,3:2}") * 2 == whole
    assert summary()["run"]["layer_map"] == {"1": 0, "3": 2}


@pytest.mark.e2e
def test_the_same_bytes_hold_twice_the_tokens(kvarena: Run) -> None:
    """A context of 96 native pages' tokens and more fits on a device of 96 native pages only if layers share."""
    sizes = ("workload.limit=3", "workload.rate=null", "workload.max_context=2048", "workload.input_scale=8")
    words = (*SIMULATED[:-1], *sizes, "memory.device_tokens=1536")
    assert kvarena(*words)[0] == 2
    status, out, _ = kvarena(*words, "compression=kvsharer", "compression.shared_layers=2")
    assert status == 0
    assert "compression.layer_map={2:1,3:1}" in out
    assert summary()["device"]["peak_pages"] > 96


@pytest.mark.e2e
@pytest.mark.parametrize("task", ["serve", "quality"])
def test_a_search_says_what_it_found(kvarena: Run, task: str) -> None:
    if task == "serve":
        words: tuple[str, ...] = ("workload.limit=2", "workload.max_context=128", "memory.host_tokens=0")
    else:
        words = ("task=quality", "task.tasks=[passkey]", "task.episodes=1", "task.lengths=[64]")
    words = (*words, "memory.device_tokens=2048", "model=recall", "tracking=none", "compression=kvsharer")
    status, out, err = kvarena(*words, "compression.sequences=4", "compression.similarity=-1")
    assert status == 0, err
    run = summary()["run"] if task == "serve" else summary()["quality"]["points"][0]
    assert len(run["layer_map"]) == 1
    shared = ",".join(f"{layer}:{source}" for layer, source in run["layer_map"].items())
    assert f"compression.layer_map={{{shared}}}" in out


@pytest.mark.e2e
def test_too_few_pairs_are_said_and_served(kvarena: Run) -> None:
    words = ("workload.limit=1", "workload.max_context=128", "memory.device_tokens=2048", "memory.host_tokens=0")
    search = ("compression=kvsharer", "compression.similarity=1", "compression.sequences=2")
    status, _, err = kvarena(*words, "model=tiny", "tracking=none", *search)
    assert status == 0, err
    assert "0 of the 1 layers asked for can use the K/V of an earlier one: none" in err
    assert summary()["run"]["layer_map"] == {}
