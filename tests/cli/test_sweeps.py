"""Sweeps: a grid, and variants of choices that go together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from kvarena.framework.cli import sweep_jobs

SIMULATED = ("backend=simulated", "model=llama-3-8b", "hardware=h100", "tracking=none", "workload.limit=3")
Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("words", "variants", "jobs"),
    [
        (["seed=0,1"], [], [["seed=0"], ["seed=1"]]),
        (
            ["seed=0,1"],
            ["system=a", "system=a eviction=x"],
            [["system=a", "seed=0"], ["system=a", "seed=1"]]
            + [["system=a", "eviction=x", "seed=0"], ["system=a", "eviction=x", "seed=1"]],
        ),
        (["system=b"], ["system=a", "system=a eviction=x"], [["system=b"], ["eviction=x", "system=b"]]),
        (["system=b", "eviction=y"], ["system=a", "system=a eviction=x"], [["system=b", "eviction=y"]]),
        ([], ["system=a prefetch=p prefetch.n=1"], [["system=a", "prefetch=p", "prefetch.n=1"]]),
    ],
)
def test_the_jobs_of_a_sweep(words: list[str], variants: list[str], jobs: list[list[str]]) -> None:
    assert sweep_jobs(OverridesParser.create().parse_overrides(words), variants) == jobs


def labels(folder: Path) -> list[str]:
    return [json.loads((folder / str(job) / "summary.json").read_text())["run"]["system"] for job in range(3)]


def test_variants_run_as_jobs_of_their_own(kvarena: Run, tmp_path: Path) -> None:
    variants = "hydra.sweeper.variants=['system=vllm','system=vllm eviction=fifo','system=pensieve_gpu']"
    assert kvarena("-m", *SIMULATED, variants)[0] == 0
    (folder,) = (tmp_path / "runs/default").iterdir()
    assert labels(folder) == ["vllm", "vllm+eviction=fifo", "pensieve_gpu"]


@pytest.mark.parametrize("variant", ["eviction=lruu", "system=vllm eviction.weight=1", "eviction"])
def test_a_bad_variant_is_said_before_anything_runs(kvarena: Run, tmp_path: Path, variant: str) -> None:
    status, out, err = kvarena("-m", *SIMULATED, f"hydra.sweeper.variants=['system=vllm','{variant}']")
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert variant.split()[-1].split("=")[0].split(".")[0] in err
    assert list(tmp_path.iterdir()) == []
