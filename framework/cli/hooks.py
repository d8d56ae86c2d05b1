"""Hydra's hooks around a single run. Sweeps check and report by themselves (``sweeper.py``)."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ..schema import ConfigError
from ..sweeps import JobState, job_state
from .composed import plain_config, run_info
from .errors import explain
from .showing import report
from .status import RUN_FAILED, say
from .sweeper import is_ours


class Doors(Callback):
    """Check a run before its folder is made, and compare when the last job has ended.

    Hydra turns an exception in a hook into a warning; only SystemExit passes.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        from ..composition import prepare

        or_exit(lambda: prepare(plain_config(config), run_info(config.hydra, None, None)))

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        if kwargs["job_return"].status == JobStatus.COMPLETED:
            folder = Path(config.hydra.runtime.output_dir)
            or_exit(lambda: report([folder], folder))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """The end of another's sweeper, such as Optuna's."""
        if is_ours(config):
            return
        out = Path(config.hydra.sweep.dir)
        folders = sorted((f for f in out.iterdir() if (f / ".hydra").is_dir()), key=lambda f: (len(f.name), f.name))
        or_exit(lambda: report(folders, out))
        if any(job_state(folder) is not JobState.FINISHED for folder in folders):
            raise SystemExit(RUN_FAILED)


def or_exit(action: Callable[[], object]) -> None:
    """Hydra turns what a hook raises into a warning; SystemExit passes."""
    try:
        action()
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        raise SystemExit(say(explain(error, sys.argv[1:]))) from error
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(RUN_FAILED) from error
