"""Installs in fresh environments: wheel and editable, beside a distribution named ``kernels``, with a plugin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from kvarena.framework.registry import Registry

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
SIMULATED = ("backend=simulated", "model=llama-3-8b", "hardware=h100", "tracking=none", "workload.limit=3")
PACKAGES = ("framework.cli", "framework.engine", "policies.eviction.lru", "conf", "kernels.paged_attention")


def run(*command: str | Path, cwd: Path, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in a clean environment; assert how it ends."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTEST_CURRENT_TEST")}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert bool(done.returncode) == fails, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


class Environment:
    """A fresh virtual environment that sees this one's packages, but not its kvarena."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "venv/bin/python"
        run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
        (self.site,) = (folder / "venv/lib").glob("python*/site-packages")
        others = folder / "others"
        others.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not entry.name.startswith(("kvarena", "__editable__", "_kvarena")):
                (others / entry.name).symlink_to(entry)
        (self.site / "others.pth").write_text(f"{others}\n")

    def install(self, *what: str | Path) -> None:
        """Install without dependencies; sources are copied first, so that nothing is built in the tree."""
        run(self.python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", *what, cwd=self.folder)

    def kvarena(self, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        return run(self.folder / "venv/bin/kvarena", *arguments, cwd=self.folder, fails=fails)

    def summary(self, runs: str, job: str = "") -> dict[str, dict[str, object]]:
        """The summary of the only run under ``runs``."""
        (folder,) = (self.folder / runs / "default").iterdir()
        content: dict[str, dict[str, object]] = json.loads((folder / job / "summary.json").read_text())
        return content


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, as a clone has it."""
    folder = tmp_path_factory.mktemp("source") / "kvarena"
    left = shutil.ignore_patterns(".git", ".nox", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=left)
    return folder


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out)
    run(*pip, source, cwd=out)
    (built,) = out.glob("kvarena-*.whl")
    return built


IMPORTS = "; ".join(f"import kvarena.{package}" for package in PACKAGES)


@pytest.mark.parametrize("how", ["wheel", "editable"])
def test_install_import_and_run(how: str, environment: Environment, wheel: Path, source: Path) -> None:
    environment.install(*([wheel] if how == "wheel" else ["-e", source]))
    where = run(environment.python, "-c", f"{IMPORTS}; print(kvarena.framework.__file__)", cwd=environment.folder)
    assert where.stdout.strip().startswith(str(environment.folder if how == "wheel" else source))
    assert "experiment=quickstart" in environment.kvarena("--help").stdout
    environment.kvarena(*SIMULATED)
    assert environment.summary("runs")["run"]["status"] == "ok"


STAND_IN = '''
"""A stand-in for Hugging Face's kernels: the names that transformers imports, and nothing behind them."""
__version__ = "{version}"


class Anything:
    def __init__(self, *args, **kwargs):
        pass


CUDAProperties = Device = LayerRepository = LocalLayerRepository = Mode = ROCMProperties = Anything
FuncRepository = LocalFuncRepository = Anything


class KernelizeFallback(Exception):
    pass


def decorate(*args, **kwargs):
    return lambda decorated: decorated


use_kernel_forward_from_hub = use_kernel_func_from_hub = use_kernelized_func = decorate
register_kernel_mapping = replace_kernel_forward_from_hub = use_kernel_mapping = decorate
get_kernel = kernelize = decorate
'''
CHECK = """
import kernels, transformers, kvarena.kernels.paged_attention as ours
from transformers.utils.import_utils import is_kernels_available
assert is_kernels_available(), "transformers does not see the stand-in"
from transformers.integrations import hub_kernels
from transformers import LlamaConfig, LlamaForCausalLM
assert kernels.Anything is hub_kernels.LayerRepository, "transformers did not import from the stand-in"
print(ours.__name__)
"""


def test_transformers_works_beside_a_distribution_named_kernels(environment: Environment, wheel: Path) -> None:
    from transformers.utils import import_utils

    version = getattr(import_utils, "KERNELS_MIN_VERSION", "0.10.3")  # one that the installed transformers accepts
    stand_in = environment.folder / "stand_in"
    (stand_in / "kernels").mkdir(parents=True)
    (stand_in / "kernels/__init__.py").write_text(STAND_IN.format(version=version))
    build = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    project = f'[project]\nname = "kernels"\nversion = "{version}"\n[tool.setuptools]\npackages = ["kernels"]\n'
    (stand_in / "pyproject.toml").write_text(build + project)
    environment.install(wheel, stand_in)
    done = run(environment.python, "-c", CHECK, cwd=environment.folder)
    assert done.stdout.strip().endswith("kvarena.kernels.paged_attention")
    environment.kvarena("tracking=none", "workload=rounds", "workload.limit=1", "workload.turns=1", "backend.threads=1")
    assert environment.summary("runs")["run"]["status"] == "ok"


def plugin(folder: Path, name: str = "kvarena-sample", package: str = "kvarena_sample") -> Path:
    """A copy of the sample distribution, under its own or another name."""
    shutil.copytree(ROOT / "tests/plugin_sample", folder)
    if package != "kvarena_sample":
        (folder / "src/kvarena_sample").rename(folder / "src" / package)
        text = (folder / "pyproject.toml").read_text()
        text = text.replace("kvarena_sample", package).replace('"kvarena-sample"', f'"{name}"')
        (folder / "pyproject.toml").write_text(text)
    return folder


@pytest.fixture
def with_plugin(environment: Environment, wheel: Path) -> Environment:
    environment.install(wheel, plugin(environment.folder / "sample"))
    return environment


def test_a_plugins_policy_is_used_by_name(with_plugin: Environment) -> None:
    with_plugin.kvarena(*SIMULATED, "eviction=sample", "eviction.weight=2")
    run = with_plugin.summary("runs")["run"]
    assert run["system"] == "vllm+eviction=sample"
    assert run["policies"]["eviction"] == {"name": "sample", "distribution": "kvarena-sample", "version": "0.3.1"}
    known = [*Registry.discover().names("eviction"), "sample"]
    assert f"eviction: {', '.join(sorted(known))}" in with_plugin.kvarena("--help").stdout


def test_a_glob_takes_every_policy_and_the_plugin_equals_lru(with_plugin: Environment) -> None:
    small = ("workload.rate=null", "memory.device_tokens=4096", "workload.max_context=2048", "workload.limit=12")
    base = [argument for argument in SIMULATED if "limit" not in argument]
    with_plugin.kvarena("-m", *base, *small, "eviction=glob(*)")
    labels = {}
    (folder,) = (with_plugin.folder / "runs/default").iterdir()
    for path in folder.glob("*/summary.json"):
        summary = json.loads(path.read_text())
        labels[summary["run"]["policies"]["eviction"]["name"]] = summary["cache"]
    assert set(labels) == {*Registry.discover().names("eviction"), "sample"}
    assert labels["sample"] == labels["lru"]
    assert labels["lru"]["evicted_pages"]["device"] > 0
    assert labels["lru"] != labels["fifo"]


def test_a_plugins_bad_knob_names_it(with_plugin: Environment) -> None:
    done = with_plugin.kvarena(*SIMULATED, "eviction=sample", "eviction.weight=0", fails=True)
    assert done.returncode == 2
    assert done.stderr == "kvarena: eviction=sample: weight is 0.0, expected more than 0\n"


def test_a_duplicate_and_a_broken_plugin_name_the_distribution(with_plugin: Environment) -> None:
    twin = plugin(with_plugin.folder / "twin", "kvarena-twin", "kvarena_twin")
    (twin / "src/kvarena_twin/conf/eviction/sample.yaml").rename(twin / "src/kvarena_twin/conf/eviction/other.yaml")
    with_plugin.install(twin)
    done = with_plugin.kvarena(*SIMULATED, fails=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "kvarena-sample 0.3.1" in done.stderr
    assert "kvarena-twin 0.3.1" in done.stderr
    (twin / "src/kvarena_twin/policies/sample.py").write_text("import there_is_no_such_module\n")
    with_plugin.install("--force-reinstall", twin)
    done = with_plugin.kvarena(*SIMULATED, fails=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "kvarena-twin 0.3.1 is broken" in done.stderr
    assert "there_is_no_such_module" in done.stderr


def test_from_nothing_to_a_sweep_with_a_policy_of_ones_own(environment: Environment, wheel: Path) -> None:
    environment.install(wheel)
    run(environment.folder / "venv/bin/kvarena-new-policy", "eviction", "my_policy", cwd=environment.folder)
    environment.install("-e", environment.folder / "kvarena-my-policy")
    listed = json.loads(environment.kvarena("--policies", "eviction", "--json").stdout)["policies"]
    (mine,) = (policy for policy in listed if policy["distribution"] != "kvarena")
    assert (mine["name"], mine["distribution"], mine["version"]) == ("my_policy", "kvarena-my-policy", "0.1.0")
    environment.kvarena(
        "-m", *SIMULATED, "memory.device_tokens=4096", "workload.max_context=2048", "eviction=lru,my_policy"
    )
    (sweep,) = (environment.folder / "runs/default").iterdir()
    lru, own = (json.loads((sweep / job / "summary.json").read_text()) for job in "01")
    assert own["run"]["policies"]["eviction"]["distribution"] == "kvarena-my-policy"
    assert own["cache"] == lru["cache"]
    assert (sweep / "comparison.md").is_file()
    again = (environment.folder / "venv/bin/kvarena-new-policy", "writeback", "my_policy")
    refused = run(*again, cwd=environment.folder, fails=True)
    assert refused.stderr == (
        "kvarena-new-policy: the package kvarena_my_policy is installed already; choose another name\n"
    )
