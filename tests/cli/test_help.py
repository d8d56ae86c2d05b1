"""What the command line says of itself: help, experiments, version, the config of a run, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from kvarena.framework.cli.help import first_clause, options
from kvarena.framework.policy import FAMILIES

CONF = Path(__file__).parents[2] / "conf"
Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_short_grouped_and_says_what_there_is(kvarena: Run, flag: str) -> None:
    status, out, err = kvarena(flag)
    assert (status, err) == (0, "")
    assert len(out.splitlines()) <= 50
    assert max(map(len, out.splitlines())) <= 120
    for word in ("-m ", "--experiments", "--policies", "kvarena-report", "kvarena-new-policy", "resume", "-sc install"):
        assert word in out
    assert "0; 1: a run failed; 2: bad configuration; 130: interrupted" in out
    words = out.replace(",", " ").split()
    for group in (*FAMILIES, "task", "system", "experiment", "workload", "backend", "model", "hardware", "tracking"):
        assert f"{group}:" in words
        assert set(options(group)) <= set(words), group


def test_every_experiment_has_a_line(kvarena: Run) -> None:
    status, out, _ = kvarena("--experiments")
    assert status == 0
    names = {path.stem for path in (CONF / "experiment").glob("*.yaml")} - {"default"}
    told = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines() if line[:1].isalpha()}
    assert names <= set(told)
    assert all(len(told[name]) > 15 for name in names)


def test_the_first_clause_of_a_comment() -> None:
    source = "# @package _global_\n# What it shows (Paper, section 1.2) at\n# 0.5 a second: details. More.\na: 1\n# b\n"
    assert first_clause(source) == "What it shows at 0.5 a second"
    assert first_clause("a: 1\n") == ""


def test_the_version_is_ours(kvarena: Run) -> None:
    assert kvarena("--version")[:2] == (0, f"kvarena {version('kvarena')}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--versoin"], ["'--versoin'", "did you mean '--version'"]),
        (["--polices"], ["did you mean '--policies'"]),
        (["-x"], ["unknown flag '-x'"]),
        (["--cfg", "jobb"], ["--cfg", "'jobb'", "job"]),
        (["--cfg"], ["--cfg", "expected one argument"]),
        (["--cfg", "job", "evicton=lru"], ["'evicton'", "did you mean 'eviction'"]),
        (["-m", "hydra/launcher=joblb"], ["unknown hydra/launcher 'joblb'", "did you mean 'joblib'"]),
        (["-m", "hydra/launcher=submitit_slurm"], ["python -m pip install 'kvarena[submitit]'"]),
        (["hydra.sweep.dirr=x"], ["did you mean 'hydra.sweep.dir'"]),
        (["eviction.weigth=1"], ["the chosen eviction has no knobs"]),
        (["workload.rat=1"], ["did you mean 'workload.rate'"]),
        (["seed=range(3)"], ["add -m"]),
        (["-m", "resume=maybe", "seed=0,1"], ["resume is 'maybe'", "true or false"]),
        (["experiment=throughput_latency", "workload.rate=1"], ["workload.rate is given"]),
        (["experiment=throughput_latency", "hydra.sweeper.ladder.factor=1"], ["factor is 1.0", "more than 1"]),
        (["experiment=throughput_latency", "+hydra.sweeper.ladder.rung=1"], ["'rung'", "did you mean 'rungs'"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_is_misspelt_is_one_line_and_the_nearest(
    kvarena: Run, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    status, out, err = kvarena(*arguments, *(["tracking=none"] if "--cfg" not in arguments else []))
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("kvarena: ")
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", [["--cfg", "job"], ["-cjob"]])
def test_the_config_says_what_its_keys_mean(kvarena: Run, before: list[str]) -> None:
    chosen = ["system=pensieve", "backend=simulated", "model=llama-3-8b", "hardware=h100", "workload.rate=3"]
    status, out, _ = kvarena(*before, *chosen)
    assert status == 0
    assert yaml.safe_load(out) == expected(chosen)
    assert "  # new conversations per second (Poisson); null: all start at 0\n  rate: 3\n" in out
    assert "# eviction=retention\neviction:\n" in out


def expected(words: list[str]) -> Any:
    with initialize_config_module("kvarena.conf", version_base="1.3"):
        return OmegaConf.to_container(compose("config", words))


def test_hydra_shows_its_own_config(kvarena: Run) -> None:
    status, out, _ = kvarena("--cfg", "hydra", "--package", "hydra.sweeper")
    assert (status, "_target_: hydra_plugins.kvarena.Variants" in out) == (0, True)


@pytest.mark.e2e
def test_completion_in_bash(tmp_path: Path) -> None:
    """As ``eval "$(kvarena -sc install=bash)"`` sets it up, asked as bash asks."""
    script = """
        eval "$(kvarena -sc install=bash)"
        complete -p kvarena
        COMP_LINE='kvarena system=pens' COMP_POINT=19 COMP_WORDS=(kvarena system=pens) COMP_CWORD=1
        hydra_bash_completion; echo "${COMPREPLY[@]}"
    """
    found = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | found, capture_output=True, text=True, check=False
    )
    assert "hydra_bash_completion" in done.stdout, done.stderr
    assert "pensieve" in done.stdout.splitlines()[-1], done
