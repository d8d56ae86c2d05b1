"""Every option of every group composes and builds, and its YAML lists all knobs of its dataclass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kvarena.framework.cli import sweep_jobs
from kvarena.framework.cli.loader import SweepLoader
from kvarena.framework.composition import BACKENDS, Memory, prepare
from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.model_knobs import HfModel, RandomModel, ShippedModel
from kvarena.framework.execution.shapes import ShapePreset
from kvarena.framework.metrics.tracking import NoneKnobs, WandbKnobs
from kvarena.framework.policy import FAMILIES
from kvarena.framework.registry import Registry
from kvarena.framework.run_info import RunInfo, run_label
from kvarena.framework.task_knobs import TASK_KNOBS
from kvarena.framework.workloads.build import WORKLOADS

CONF = Path(__file__).parents[2] / "conf"
GROUPS = {
    *FAMILIES,
    *("task", "system", "memory", "backend", "model", "hardware", "workload", "tracking", "experiment", "hydra"),
}
OPTIONS = sorted(
    (path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name not in ("hydra", "local")
)
Swept = Callable[[str], list[tuple[dict[str, Any], RunInfo]]]
KNOBS = [(group, option) for group, option in OPTIONS if group not in ("system", "experiment")]


def options(group: str) -> list[str]:
    return [option for member, option in OPTIONS if member == group]


@pytest.fixture(autouse=True, scope="module")
def hydra_is_ready() -> Iterator[None]:
    with initialize_config_module("kvarena.conf", version_base="1.3"):
        yield


def composed(*overrides: str) -> tuple[dict[str, Any], RunInfo]:
    return told(compose("config", list(overrides), return_hydra_config=True))


def told(config: DictConfig) -> tuple[dict[str, Any], RunInfo]:
    choices = {k: v for k, v in config.hydra.runtime.choices.items() if v is not None}
    own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    plain = OmegaConf.to_container(own, resolve=True)
    assert isinstance(plain, dict)
    return plain, RunInfo(run_label(choices), choices)


def schema(group: str, config: DictConfig) -> type:
    """The dataclass of the option that ``group`` picks in ``config``."""
    if group in FAMILIES:
        return Registry.discover().find(group, config["name"]).policy
    if group == "model":
        return {"random": RandomModel, "hf": HfModel, "shipped": ShippedModel}.get(config.get("kind"), ShapePreset)
    if group == "tracking":
        return {"none": NoneKnobs, "wandb": WandbKnobs}[config["name"]]
    if group in ("backend", "workload", "task"):
        return {"backend": BACKENDS, "workload": WORKLOADS, "task": TASK_KNOBS}[group][config["name"]]
    return {"memory": Memory, "hardware": Hardware}[group]


def test_the_groups_are_the_contract() -> None:
    assert {path.name for path in CONF.iterdir() if path.is_dir()} - {"local", "__pycache__"} == GROUPS


@pytest.mark.parametrize(("group", "option"), KNOBS)
def test_a_yaml_lists_all_knobs_of_its_dataclass(group: str, option: str) -> None:
    config = OmegaConf.load(CONF / group / f"{option}.yaml")
    assert isinstance(config, DictConfig)
    cls = schema(group, config)
    knobs = {f.name for f in fields(cls) if f.init} if is_dataclass(cls) else set()
    assert set(config) - {"name", "kind"} == knobs - {"name", "kind"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policys_yaml_gives_the_defaults_of_its_dataclass_under_its_name(family: str) -> None:
    registry = Registry.discover()
    named = {OmegaConf.load(CONF / family / f"{option}.yaml")["name"] for option in options(family)}
    assert named == set(registry.names(family))
    for option in set(options(family)) & set(registry.names(family)):
        config = OmegaConf.load(CONF / family / f"{option}.yaml")
        for field in fields(registry.find(family, option).policy):
            if field.default is not MISSING:
                assert config[field.name] == field.default, f"{family}/{option}.yaml: {field.name}"


@pytest.mark.parametrize(("group", "option"), [o for o in OPTIONS if o[0] not in ("model", "hardware", "workload")])
def test_every_option_composes_and_builds(group: str, option: str) -> None:
    model = ["model=llama-3-8b", "hardware=h100"] if (group, option) == ("backend", "simulated") else []
    in_cache = OmegaConf.load(CONF / group / f"{option}.yaml").get("positions") == "cache"
    words = [f"{group}={option}", *model, *(["backend.decoupled=true"] if in_cache else [])]
    config, info = composed(*words)
    chosen = option if group == "task" else str(config["task"]["name"])
    assert isinstance(prepare(config, info).task, TASK_KNOBS[chosen])


@pytest.mark.parametrize("option", options("hardware"))
def test_every_hardware_builds(option: str) -> None:
    assert prepare(*composed(f"hardware={option}")).hardware.name == option


@pytest.mark.parametrize("option", options("model"))
def test_every_model_builds_on_its_backend(option: str, tmp_path: Path) -> None:
    config = OmegaConf.load(CONF / "model" / f"{option}.yaml")
    if config.get("kind") in ("random", "hf", "shipped"):
        path = [f"model.path={tmp_path}"] if config["kind"] == "hf" else []
        assert prepare(*composed(f"model={option}", *path)).model is not None
    else:
        shape = prepare(*composed(f"model={option}", "backend=simulated", "hardware=h100")).shape
        assert shape is not None
        assert shape.name == option


@pytest.mark.parametrize("option", options("workload"))
def test_every_workload_builds(option: str, tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    path = [f"workload.path={tmp_path / 'data'}"] if option in ("jsonl", "mooncake", "sharegpt") else []
    config, info = composed(f"workload={option}", *path)
    assert isinstance(prepare(config, info).workload, WORKLOADS[config["workload"]["name"]])


def test_systems_pick_one_option_of_every_family_and_set_only_names_that_all_options_share() -> None:
    for system in options("system"):
        config = OmegaConf.load(CONF / "system" / f"{system}.yaml")
        picked = {key for entry in config["defaults"] if isinstance(entry, DictConfig) for key in entry}
        assert picked == {f"override /{family}" for family in FAMILIES}, system
        assert config["system"] == system
        for group in set(config) - {"defaults", "system"}:
            for option in options(str(group)):
                assert set(config[group]) <= set(OmegaConf.load(CONF / str(group) / f"{option}.yaml")), system


def test_experiments_that_sweep_systems_override_no_family() -> None:
    for experiment in options("experiment"):
        config = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
        entries = [key for entry in config.get("defaults", []) if isinstance(entry, DictConfig) for key in entry]
        if OmegaConf.select(config, "hydra.sweeper.params.system"):
            assert not {f"override /{family}" for family in FAMILIES} & set(entries), experiment


def jobs(experiment: str) -> list[list[str]]:
    """The overrides of every job that ``kvarena -m experiment=...`` runs."""
    config = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    sweeper = OmegaConf.select(config, "hydra.sweeper") or {}
    given = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    return sweep_jobs(OverridesParser.create().parse_overrides(given), sweeper.get("variants") or ())


@pytest.fixture(scope="module")
def swept() -> Swept:
    """Every job of an experiment, composed as ``-m`` does; each experiment once."""
    known: dict[str, list[tuple[dict[str, Any], RunInfo]]] = {}

    def compose_jobs(experiment: str) -> list[tuple[dict[str, Any], RunInfo]]:
        if experiment not in known:
            loader = SweepLoader(GlobalHydra.instance().config_loader().get_search_path())
            given = [f"experiment={experiment}"]
            master = loader.load_configuration("config", given, RunMode.MULTIRUN)
            known[experiment] = [told(loader.load_sweep_config(master, [*given, *words])) for words in jobs(experiment)]
        return known[experiment]

    return compose_jobs


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_job_of_an_experiment_composes_and_builds(experiment: str, swept: Swept) -> None:
    assert len(set(map(tuple, jobs(experiment)))) == len(jobs(experiment)), "two jobs are the same run"
    for config, info in swept(experiment):
        prepare(config, info)


def test_the_experiments_are_what_they_say(swept: Swept) -> None:
    systems = {info.label for _, info in swept("quickstart")}
    assert systems == {"vllm_stateless", "vllm", "vllm_offload", "pensieve", "cachedattention"}
    for paper, system in (("pensieve_ablations", "pensieve"), ("cachedattention_ablations", "cachedattention")):
        labels = [info.label for _, info in swept(paper)]
        assert labels[0] == system
        assert sum(label.startswith(f"{system}+") for label in labels) >= 5
    peers = {name: prepare(*composed(f"experiment={name}")).memory for name in ("peers_host", "peers_disk")}
    assert {memory.device_tokens for memory in peers.values()} == {6400}
    assert (peers["peers_host"].disk_tokens, peers["peers_disk"].host_tokens) == (0, 0)


def test_the_label_names_what_differs_from_the_system() -> None:
    assert composed("system=vllm")[1].label == "vllm"
    assert composed("system=vllm", "eviction=lru")[1].label == "vllm"
    assert composed("system=vllm", "eviction=fifo")[1].label == "vllm+eviction=fifo"
    both = composed("system=vllm", "scheduling=unified", "eviction=fifo")[1].label
    assert both == "vllm+eviction=fifo+scheduling=unified"


def test_a_later_choice_on_the_command_line_wins() -> None:
    assert composed("system=vllm_stateless")[0]["prefetch"]["name"] == "none"
    assert composed("system=vllm_stateless", "prefetch=prefix")[0]["prefetch"]["name"] == "prefix"
    assert composed("prefetch=prefix", "system=vllm_stateless")[0]["prefetch"]["name"] == "prefix"
