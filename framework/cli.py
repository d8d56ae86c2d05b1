"""The command line: ``kvarena [overrides]``, a Hydra application on ``conf/config.yaml``.

Nothing is computed before everything was checked; what is wrong is said in one line. Exit status: 0, or 2 for a bad
configuration, or 1 if a run failed. In a sweep no job raises: its ``summary.json`` says what happened.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .paths import CONF_GROUP, conf_plugins, discard, read_summary
from .run_info import RunInfo, run_label
from .schema import ConfigError, suggest

BAD_CONFIG, RUN_FAILED, INTERRUPTED = 2, 1, 130
SWEEPER = "hydra_plugins.kvarena.Variants"  # Hydra takes a sweeper only under a name of this package, which need not be
COLLECT_AFTER = (50_000, 20, 50)  # what a run makes stays, or dies without cycles: looking for some every 700 is waste
FILE_WIDTH = 120  # columns of the table where standard output is no terminal


def main() -> int:
    """Run the command line ``sys.argv`` and return the exit status."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting
    gc.set_threshold(*COLLECT_AFTER)
    sys.argv[1:] = sorted(
        sys.argv[1:], key=lambda word: word not in ("-m", "--multirun")
    )  # `system=a,b -m seed=1` works too
    Plugins.instance().register(ConfPlugins)
    Plugins.instance().class_name_to_class[SWEEPER] = Variants
    application = hydra.main(version_base="1.3", config_path="pkg://kvarena.conf", config_name="config")(job)
    try:
        application()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return _interrupted()
    except (HydraException, OmegaConfBaseException, ConfigError, yaml.YAMLError) as error:
        if _was_interrupted(error):
            return _interrupted()
        return _say(explain(error, sys.argv[1:]))
    except OSError as error:
        return _say(f"cannot write the run folder: {error.strerror or error}: {error.filename}")
    return 0


def _interrupted() -> int:
    return _say("interrupted; finished runs keep their folders", INTERRUPTED)


def _was_interrupted(error: BaseException | None) -> bool:
    """Hydra may replace Ctrl-C by an error of its own while it unwinds."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _say(line: str, status: int = BAD_CONFIG) -> int:
    print(f"kvarena: {line}", file=sys.stderr)
    return status


def job(config: DictConfig) -> None:
    """Run one job in the folder that Hydra made for it.

    In a sweep it never raises. A single run ends with SystemExit, which Hydra passes on without a word of its own.
    """
    from .serve import record_failure  # the engine is loaded when something runs, not for --help
    from .tasks import run_task

    whole: Any = HydraConfig.instance().cfg
    plain, info, folder = _plain(config), _info(whole.hydra), Path(whole.hydra.runtime.output_dir)
    try:
        run_task(plain, folder, info)
    except ConfigError as error:
        status = _say(str(error) if info.sweep is None else f"run {info.job} ({info.label}): {error}")
        if info.sweep is None:
            discard(folder)
            raise SystemExit(status) from error
        record_failure(folder, plain, info, str(error))
    except KeyboardInterrupt:
        record_failure(folder, plain, info, "interrupted")
        raise
    except Exception as error:
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        record_failure(folder, plain, info, line, traceback.format_exc())
        status = _say(f"run {info.label} failed: {line}; see {os.path.relpath(folder / 'error.txt')}", RUN_FAILED)
        if info.sweep is None:
            raise SystemExit(status) from error


class ConfPlugins(SearchPathPlugin):
    """Appends the config package of every distribution with the entry point ``kvarena.conf``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for provider, package in conf_plugins(entry_points(group=CONF_GROUP)):
            search_path.append(provider=provider, path=f"pkg://{package}")


class Variants(BasicSweeper):  # type: ignore[misc, unused-ignore]
    """Hydra's grid sweeper with one dimension more: ``variants``, each some overrides that go together in a job."""

    def __init__(
        self, max_batch_size: int | None, params: dict[str, str] | None = None, variants: Sequence[str] = ()
    ) -> None:
        # Not super().__init__: Hydra loads its sweeper's module a second time, whose __init__ does not know this class.
        self.overrides: Sequence[Sequence[Sequence[str]]] | None = None
        self.batch_index, self.max_batch_size, self.params = 0, max_batch_size, params or {}
        self.hydra_context, self.config, self.launcher = None, None, None
        self.variants = tuple(variants)

    def split_arguments(  # type: ignore[override, unused-ignore]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The overrides of every job, in batches."""
        return list(self.split_overrides_to_chunks(sweep_jobs(overrides, self.variants), max_batch_size))


def sweep_jobs(overrides: list[Override], variants: Sequence[str]) -> list[list[str]]:
    """The overrides of every job: each variant with each point of the grid. A key of the grid wins over a variant's;
    variants that are equal then become one."""
    (grid,) = BasicSweeper.split_arguments(overrides, None)
    given = {override.get_key_element() for override in overrides}
    left = [tuple(word for word in words.split() if word.split("=")[0] not in given) for words in variants or ("",)]
    return [[*words, *point] for words in dict.fromkeys(left) for point in grid]


class Doors(Callback):
    """Hydra's hooks: check everything before a folder is made, and report when the last job has ended.

    Hydra turns an exception in a hook into a warning; only SystemExit passes.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        _or_exit(lambda: _check(config))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _or_exit(lambda: _check(*_sweep_configs(config)))

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        if kwargs["job_return"].status == JobStatus.COMPLETED:
            _or_exit(lambda: _report([Path(config.hydra.runtime.output_dir)]))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        out = Path(config.hydra.sweep.dir)
        folders = sorted((f for f in out.iterdir() if (f / ".hydra").is_dir()), key=lambda f: (len(f.name), f.name))
        _or_exit(lambda: _report(folders, out))
        if any(read_summary(folder).get("run", {}).get("status") in (None, "failed") for folder in folders):
            raise SystemExit(RUN_FAILED)


def _plain(config: DictConfig) -> dict[str, Any]:
    """The config without Hydra's part, resolved, as plain containers; a value that is still ``???`` is an error."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    plain = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _info(config: DictConfig) -> RunInfo:
    """What Hydra knows of the job: the options chosen, and its place in the sweep."""
    choices = {str(group): str(option) for group, option in config.runtime.choices.items() if option is not None}
    sweep = Path(config.sweep.dir).name if config.mode == RunMode.MULTIRUN else None
    number = None if OmegaConf.is_missing(config.job, "num") else config.job.num
    return RunInfo(run_label(choices), choices, tuple(config.overrides.task), sweep, number)


def _or_exit(action: Callable[[], object]) -> None:
    """Hydra turns what a hook raises into a warning; SystemExit passes."""
    try:
        action()
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        raise SystemExit(_say(explain(error, sys.argv[1:]))) from error
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(RUN_FAILED) from error


def _check(*configs: DictConfig) -> None:
    """Check every config; those of a sweep together with the files of their workloads, each file once."""
    from .composition import prepare
    from .opening import check_workload

    parts = [prepare(_plain(config), _info(config.hydra)) for config in configs]
    if len(parts) > 1:
        for distinct in {part.workload_key: part for part in parts}.values():
            check_workload(distinct)


def _sweep_configs(config: DictConfig) -> Iterator[DictConfig]:
    """The config of every job of a grid sweep; other sweepers choose their jobs as they go."""
    sweeper = config.hydra.sweeper
    if not sweeper.get("_target_", "").endswith((BasicSweeper.__name__, Variants.__name__)):
        return
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    overrides = OverridesParser.create(loader).parse_overrides([*params, *config.hydra.overrides.task])
    for job_overrides in sweep_jobs(overrides, sweeper.get("variants", ())):
        yield loader.load_sweep_config(config, job_overrides)


def _report(folders: list[Path], sweep: Path | None = None) -> None:
    """Compare the runs in ``folders``: files into the sweep's folder, or the only run's, and a printed table."""
    from rich.console import Console

    from .report import compare

    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    out = sweep or folders[0]
    console.print(compare(folders, out))
    for line in dict.fromkeys(line for folder in folders if (line := _times_line(read_summary(folder)))):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"results: {os.path.relpath(out)}", soft_wrap=True, highlight=False)


def _times_line(summary: dict[str, Any]) -> str:
    """Where the times of a run with measured tables came from."""
    run = summary.get("run", {})
    if not isinstance(times := run.get("times_from"), dict):
        return ""
    return (
        f"{run.get('system')}, simulated time: {times['measured']:.1%} interpolated between measured points,"
        f" {times['extrapolated']:.1%} scaled from the nearest of them, {times['roofline']:.1%} from the roofline alone"
        f" ({times['tables']})"
    )


def explain(error: Exception, arguments: list[str]) -> str:
    """Hydra's and our own errors as one line, with the nearest spelling of what is unknown."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"unknown {group} {option!r}; known: {', '.join(error.options)}{suggest(option, error.options)}"
    if isinstance(error, OverrideParseException):
        return f"cannot read the argument {error.override!r}, expected key=value: {_first_line(error)}"
    if str(error).startswith("Ambiguous value for argument"):
        return f"{str(error).splitlines()[0]}; to sweep over several values, add -m"
    if unknown := re.search(r"Could not (?:override|append to config|delete[^']*) '([^']+)'", str(error)):
        key = unknown[1].split("@")[0]
        group = key.split(".")[0]
        if any(argument.startswith(f"{group}=") and "," in argument for argument in arguments):
            return f"{key} is set for all jobs, but {group} differs between them; write '{key}=choice(VALUE)'"
        return f"unknown key {key!r}{suggest(key, _known_keys(key, arguments))}; see kvarena --help"
    return " ".join(str(error).split())


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and "hydra.cc" not in line]
    return lines[-1].strip() if lines else type(error).__name__


def _known_keys(key: str, arguments: list[str]) -> list[str]:
    """Groups and keys of the config that ``arguments`` compose without ``key``."""
    overrides = [a for a in arguments if "=" in a and "," not in a and a[0].isalpha() and not a.startswith(key)]
    ready = GlobalHydra.instance().is_initialized()  # in a sweep's hook
    try:
        with nullcontext() if ready else initialize_config_module("kvarena.conf", version_base="1.3"):
            config = compose("config", overrides)
    except (HydraException, OmegaConfBaseException):
        return []
    return [known for known in _keys(OmegaConf.to_container(config)) if not known.endswith(".name")]


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from _keys(value, f"{prefix}{key}.")
