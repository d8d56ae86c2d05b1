"""``main``: flags of our own, then Hydra."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf.errors import OmegaConfBaseException

from ..paths import CONF_GROUP, conf_plugins
from ..schema import ConfigError
from .errors import explain
from .flags import check_flags, in_order
from .help import print_experiments, print_help, print_version
from .jobs import job
from .shown_config import print_config, wants_config
from .status import INTERRUPTED, RUN_FAILED, say, was_interrupted
from .sweeper import SWEEPERS

COLLECT_AFTER = (50_000, 20, 50)  # what a run makes stays, or dies without cycles: looking for some every 700 is waste


def main() -> int:
    """Run the command line ``sys.argv`` and return the exit status."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting
    gc.set_threshold(*COLLECT_AFTER)
    sys.argv[1:] = in_order(sys.argv[1:])
    Plugins.instance().register(ConfPlugins)
    Plugins.instance().class_name_to_class.update(SWEEPERS)
    try:
        status = _answer(sys.argv[1:])
        return _run() if status is None else status
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return _interrupted()
    except (HydraException, OmegaConfBaseException, ConfigError, yaml.YAMLError) as error:
        if was_interrupted(error):
            return _interrupted()
        return say(explain(error, sys.argv[1:]))
    except BrokenPipeError:  # who read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RUN_FAILED
    except OSError as error:
        return say(f"cannot write the run folder: {error.strerror or error}: {error.filename}")


def _answer(words: list[str]) -> int | None:
    """Answer what needs no run and return the exit status; None if there is something to run.

    Raises
    ------
    ConfigError
        If there is no such flag.
    """
    if "--policies" in words:
        from ..catalogue import main as list_policies

        return list_policies(words)
    for flag, answer in ANSWERS.items():
        if flag in words:
            answer()
            return 0
    check_flags(words, (*ANSWERS, "--policies"))
    overrides = wants_config(words)
    if overrides is None:
        return None
    print_config(overrides)
    return 0


ANSWERS: Mapping[str, Callable[[], None]] = {
    "--help": print_help,
    "-h": print_help,
    "--version": print_version,
    "--experiments": print_experiments,
}


def _run() -> int:
    """Hydra, from here on."""
    application = hydra.main(version_base="1.3", config_path="pkg://kvarena.conf", config_name="config")(job)
    application()
    return 0


def _interrupted() -> int:
    return say("interrupted; finished runs keep their folders", INTERRUPTED)


class ConfPlugins(SearchPathPlugin):
    """Appends the config package of every distribution with the entry point ``kvarena.conf``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for provider, package in conf_plugins(entry_points(group=CONF_GROUP)):
            search_path.append(provider=provider, path=f"pkg://{package}")
