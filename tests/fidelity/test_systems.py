"""The configs of other systems are what the command line would have made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvarena.framework.fidelity.systems import refuse_families, system_config, system_info
from kvarena.framework.policy import FAMILIES
from kvarena.framework.run_info import RunInfo
from kvarena.framework.schema import ConfigError
from kvarena.framework.task_knobs import SYSTEMS

sys.path.insert(0, str(Path(__file__).parent))
from conftest import composed


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_systems_config_is_that_of_the_command_line(system: str) -> None:
    assert system_config(composed(), system) == composed(f"system={system}")


def test_a_systems_label_is_its_name_and_the_rest_stays() -> None:
    info = RunInfo("vllm", {"system": "vllm", "eviction": "lru", "model": "tiny"}, ("seed=1",))
    found = system_info(info, "pensieve")
    assert (found.label, found.overrides) == ("pensieve", ("seed=1",))
    assert (found.choices["eviction"], found.choices["model"]) == ("retention", "tiny")


def test_an_unknown_system_is_named_with_its_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown system 'pensive'; known: .*did you mean 'pensieve'"):
        system_config({}, "pensive")


@pytest.mark.parametrize(
    "word", ["eviction=lru", "system=vllm", "prefetch.ratio=0.5", *[f"{f}=none" for f in FAMILIES]]
)
def test_policies_are_the_systems_own(word: str) -> None:
    with pytest.raises(ConfigError, match="task.systems"):
        refuse_families(RunInfo("vllm", {}, ("seed=1", word)))
    refuse_families(RunInfo("vllm", {}, ("seed=1", "memory.page_size=8")))
