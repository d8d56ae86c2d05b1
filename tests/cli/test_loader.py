"""A sweep's jobs are composed as Hydra composes them, only faster."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from kvarena.framework.cli.loader import SweepLoader

JOBS = [
    ["system=pensieve", "seed=0"],
    ["system=pensieve", "seed=1", "workload.rate=2"],
    ["eviction=lru", "system=vllm", "workload=rounds", "workload.turns=3"],
    ["experiment=quickstart", "system=vllm", "+tracking.extra=1"],
    ["system=vllm", "hydra.sweep.subdir=7", "~workload.warmup"],
    ["memory={page_size:32}", "runs='a b'", "hydra.sweep.dir='x/a=b, c'"],
]


@pytest.fixture
def master() -> Iterator[DictConfig]:
    with initialize_config_module("kvarena.conf", version_base="1.3", job_name="kvarena"):
        config = compose("config", ["hydra.verbose=true"], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        yield config


def loaders() -> tuple[ConfigLoaderImpl, SweepLoader]:
    path = GlobalHydra.instance().config_loader().get_search_path()
    return ConfigLoaderImpl(path), SweepLoader(path)


def test_every_job_is_composed_as_hydra_does(master: DictConfig) -> None:
    hydra, ours = loaders()
    for words in JOBS:
        expected, found = hydra.load_sweep_config(master, words), ours.load_sweep_config(master, words)
        assert OmegaConf.to_container(found) == OmegaConf.to_container(expected), words
    assert len(ours._composed) < len(JOBS)


@pytest.mark.parametrize("words", [["workload.rat=1"], ["system=vlm"], ["seed=1,2"], ["+eviction=lru"]])
def test_what_hydra_refuses_is_refused(master: DictConfig, words: list[str]) -> None:
    hydra, ours = loaders()
    errors = []
    for loader in (hydra, ours):
        with pytest.raises(HydraException) as caught:
            loader.load_sweep_config(master, words)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


def test_it_goes_to_other_processes_without_what_it_composed(master: DictConfig) -> None:
    ours = loaders()[1]
    ours.load_sweep_config(master, ["seed=1"])
    copy = pickle.loads(pickle.dumps(ours))
    assert (len(ours._composed), len(copy._composed)) == (1, 0)
    assert copy.load_sweep_config(master, ["seed=1"]).seed == 1
