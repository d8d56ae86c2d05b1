"""``kvarena -m``: Hydra's sweepers of this house, and what they have in common."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ..paths import read_summary
from ..run_info import RunInfo
from ..schema import ConfigError, build
from ..sweeps import (
    Grid,
    JobState,
    Ladder,
    Plan,
    RateLadder,
    SweepFolder,
    SweepProgress,
    Words,
    code_version,
    contestants,
    identity,
    open_sweep,
    sweep_key,
)
from .composed import plain_config, run_info
from .ending import ended, interrupted, resumes
from .launching import Launches
from .loader import SweepLoader
from .status import say, was_interrupted


class Variants(BasicSweeper):  # type: ignore[misc, unused-ignore]
    """Hydra's grid sweeper with one dimension more: ``variants``, each some overrides that go together in a job.

    With a ``ladder`` (the fields of ``Ladder``) each of those jobs is a contestant whose rate rises until it saturates.
    All jobs that are known are checked before a folder is made; an unfinished sweep is resumed.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None = None,
        variants: Sequence[str] = (),
        ladder: Mapping[str, Any] | None = None,
    ) -> None:
        # Not super().__init__: Hydra loads its sweeper's module a second time, whose __init__ does not know this class.
        self.overrides: Sequence[Sequence[Sequence[str]]] | None = None
        self.batch_index, self.max_batch_size, self.params = 0, max_batch_size, params or {}
        self.hydra_context, self.config, self.launcher = None, None, None
        self.variants = tuple(variants)
        self._ladder = ladder

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's, with a loader that composes what jobs share once."""
        loader = SweepLoader(hydra_context.config_loader.get_search_path())
        context = HydraContext(config_loader=loader, callbacks=hydra_context.callbacks)
        super().setup(hydra_context=context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run all jobs and compare them; ends with SystemExit if one failed, or after Ctrl-C."""
        overrides = self._parsed(arguments)
        jobs = [tuple(words) for words in sweep_jobs(overrides, self.variants)]
        plan, first, extra = self.plan(jobs)
        key = sweep_key(self._checked(first), extra)
        folder = self._open(key)
        try:
            self._run(plan, folder)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or was_interrupted(error):
                raise SystemExit(interrupted(folder)) from error
            folder.close("interrupted")
            raise
        for note in plan.notes():
            say(note)
        if status := ended(folder):
            raise SystemExit(status)

    def plan(self, jobs: list[Words]) -> tuple[Plan, list[Words], object]:
        """The plan, the jobs that it begins with, and what else tells this sweep from others."""
        if self._ladder is None:
            return Grid(jobs), jobs, None
        ladder = build(Ladder, self._ladder, "hydra.sweeper.ladder")
        key = ladder.key
        if any(word.split("=")[0] == key for words in jobs for word in words):
            raise ConfigError(f"{key} is given, but this sweep looks for it; begin with hydra.sweeper.ladder.first=...")
        first = [(*words, f"{key}={ladder.first:g}") for words in jobs]
        return RateLadder(ladder, contestants(jobs)), first, repr(ladder)

    def _parsed(self, arguments: list[str]) -> list[Override]:
        assert self.config is not None and self.hydra_context is not None
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parsed: list[Override] = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(words)
        return parsed

    def compose(self, words: Words) -> tuple[dict[str, Any], RunInfo]:
        """The config of a job, as the engine takes it."""
        assert self.config is not None and self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(words))
        return plain_config(config), run_info(config.hydra, "sweep", None)

    def _checked(self, jobs: Sequence[Words]) -> list[tuple[Words, Mapping[str, Any]]]:
        """Check every job, and the files of their workloads, each file once; their configs."""
        from ..composition import prepare
        from ..opening import check_workload
        from ..serve import decision_log

        composed = [self.compose(words) for words in jobs]
        parts = [prepare(plain, info) for plain, info in composed]
        for part in parts:
            decision_log(part)  # refused where nothing decides on tokens
        if len(parts) > 1:
            for distinct in {part.workload_key: part for part in parts}.values():
                check_workload(distinct)
        return [(words, plain) for words, (plain, _) in zip(jobs, composed, strict=True)]

    def _open(self, key: str) -> SweepFolder:
        """The sweep's folder, and Hydra told of it."""
        assert self.config is not None
        resume = self.config.get("resume", True)
        if not isinstance(resume, bool):
            raise ConfigError(f"resume is {resume!r}, expected true or false")
        command = ["kvarena", *sys.argv[1:]]
        folder, notes = open_sweep(Path(self.config.hydra.sweep.dir), key, code_version(), command, resume)
        for note in notes:
            say(note)
        if folder.resumed:
            say(resumes(folder))
            folder.renew()
        _use(self.config, folder.path)
        OmegaConf.save(self.config, folder.path / "multirun.yaml")
        return folder

    def _run(self, plan: Plan, folder: SweepFolder) -> None:
        """Launch what the plan asks for until it asks for nothing."""
        assert self.launcher is not None
        launches = Launches(self.launcher, folder, self.compose, self.max_batch_size)
        numbers: dict[Words, int] = {}
        with SweepProgress() as progress:
            while jobs := plan.next(
                {words: summary for words in numbers if (summary := _told(folder, numbers[words]))}
            ):
                new = folder.add(identity(words) for words in jobs)
                numbers.update(zip(jobs, new, strict=True))
                progress.add(folder.folder(number) for number in new)
                launches.run({number: words for words, number in zip(jobs, new, strict=True)})


# Hydra takes a sweeper only under a name of this package, which need not be.
SWEEPERS: Mapping[str, type[Variants]] = {"hydra_plugins.kvarena.Variants": Variants}


def is_ours(config: DictConfig) -> bool:
    """The sweeper of ``config`` checks and reports by itself."""
    return config.hydra.sweeper.get("_target_") in SWEEPERS


def sweep_jobs(overrides: list[Override], variants: Sequence[str]) -> list[list[str]]:
    """The overrides of every job: each variant with each point of the grid. A key of the grid wins over a variant's;
    variants that are equal then become one."""
    (grid,) = BasicSweeper.split_arguments(overrides, None)
    given = {override.get_key_element() for override in overrides}
    left = [tuple(word for word in words.split() if word.split("=")[0] not in given) for words in variants or ("",)]
    return [[*words, *point] for words in dict.fromkeys(left) for point in grid]


def _use(config: DictConfig, path: Path) -> None:
    """Jobs run in ``path``, wherever they run, each in a folder named by its number."""
    where = str(path.absolute()).replace("\\", "\\\\").replace("'", "\\'")
    kept = [word for word in config.hydra.overrides.hydra if not word.startswith("hydra.sweep.dir=")]
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir = str(path)
        config.hydra.overrides.hydra = [*kept, f"hydra.sweep.dir='{where}'"]


def _told(folder: SweepFolder, number: int) -> dict[str, Any] | None:
    """The summary of a finished job."""
    return read_summary(folder.folder(number)) if folder.state(number) is JobState.FINISHED else None
