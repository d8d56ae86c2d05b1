"""The knobs of each task: the schemas of ``conf/task/*.yaml``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .calibrate.design import Limits
from .metrics import Slo
from .quality.episodes import SHORTEST
from .quality.episodes import TASKS as RETRIEVAL
from .schema import suggest

SYSTEMS = ("vllm_stateless", "vllm", "vllm_offload", "pensieve_gpu", "pensieve", "cachedattention", "sglang_hicache")


@dataclass(frozen=True, slots=True)
class ServeTask:
    """``task=serve``: run the workload and measure.

    Attributes
    ----------
    quality_sample: share of the conversations whose replies are judged against the full cache once all is served; None
        or 0: none.
    """

    slo: Slo = field(default_factory=Slo)
    quality_sample: float | None = None

    def __post_init__(self) -> None:
        if self.quality_sample is not None and not 0 <= self.quality_sample <= 1:
            raise ValueError(f"quality_sample is {self.quality_sample}, expected a share of the conversations, 0 to 1")


@dataclass(frozen=True, slots=True)
class ReplayTask:
    """``task=replay``: cache decisions only, no model and no time.

    Attributes
    ----------
    semantics: ``block``: pages one after another, no prefix rule; ``prefix``: request by request, as vLLM's block
        manager.
    capacities: in pages (blocks), in any order; None: what ``memory.device_tokens`` holds, or, if that is None too,
        ``points`` capacities, each twice the one before, the largest half of all pages of the workload.
    belady: replay Belady's policy beside.
    """

    semantics: Literal["block", "prefix"] = "block"
    capacities: tuple[int, ...] | None = None
    points: int = 9
    belady: bool = True

    def __post_init__(self) -> None:
        if self.capacities is not None and (not self.capacities or min(self.capacities) < 1):
            raise ValueError(f"capacities is {list(self.capacities)}, expected numbers of pages, each at least 1")
        if not 1 <= self.points <= 62:
            raise ValueError(f"points is {self.points}, expected 1 to 62")


@dataclass(frozen=True, slots=True)
class CalibrateTask:
    """``task=calibrate``: measure this machine and model for the simulator.

    Attributes
    ----------
    seconds: for timing batches; engine, links and disk take a little more.
    limits: how far the tables reach.
    hardware: the name of the hardware file.
    output: the folder for tables and configs; null: the run's own.
    """

    seconds: float = 60.0
    limits: Limits = field(default_factory=Limits)
    hardware: str = "calibrated"
    output: str | None = None

    def __post_init__(self) -> None:
        _require_seconds(self.seconds)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.hardware):
            raise ValueError(f"hardware is {self.hardware!r}, expected letters, digits, '.', '_' and '-'")
        if self.output == "":
            raise ValueError("output is '', expected a folder, or null for the run's own")


@dataclass(frozen=True, slots=True)
class FidelityTask:
    """``task=fidelity``: the simulator against real runs.

    Attributes
    ----------
    systems: each is run for real and simulated; none: only the comparison with ``vllm``.
    rounds: real runs of each system, in turn.
    seconds, limits: of the calibration, see :class:`CalibrateTask`; its batches are timed between the rounds.
    vllm: a folder with measured runs of vLLM (LLMServingSim's ``evaluation`` and ``profiler``), null: none.
    """

    systems: tuple[str, ...] = SYSTEMS
    rounds: int = 5
    seconds: float = 60.0
    limits: Limits = field(default_factory=Limits)
    vllm: str | None = None

    def __post_init__(self) -> None:
        _require_seconds(self.seconds)
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}, expected at least 1")
        if len(set(self.systems)) < len(self.systems):
            raise ValueError(f"systems is {list(self.systems)}, expected each of them once")
        if not self.systems and self.vllm is None:
            raise ValueError("systems is [] and vllm is null: there is nothing to compare")


QUALITY_TASKS = (*RETRIEVAL, "perplexity")


@dataclass(frozen=True, slots=True)
class QualityTask:
    """``task=quality``: what the chosen policies cost in quality, held against the full cache.

    Attributes
    ----------
    tasks: of :data:`QUALITY_TASKS`; None: all that the model can be asked, or none where there are ``files``.
    episodes: of each task and length. lengths: of an episode, in tokens.
    questions: about each context, as many as it answers; None: one, two in ``multi_turn``.
    protocol: ``query_agnostic``: the context is compressed before any question is known; ``query_aware``: the first
        question ends the prompt that is compressed, and the reply's first token comes before anything leaves.
    text: a file to predict; None: the held-out excerpt that comes with the model of bytes.
    files: questions as LongBench or RULER write them. answer_tokens: of a reply to one; None: as LongBench has it for
        its datasets, 32 for others.
    file_tokens: longer contexts of files lose their middle; None: none does, and what is too long is refused.
    prompts: a file of prompts by dataset, as LongBench publishes them; None: the same in our words.
    budgets: values of ``truncation.budget_ratio`` to measure one after another; None: the policy as it is configured.
    measures: beside accuracy, KL, top-1 and bits.
    top_keys: of how many of the keys that get most attention the recall is.
    free_running: let the model go on from its own replies too, unheard: accuracy and speed are then of that run.
    """

    tasks: tuple[str, ...] | None = None
    episodes: int = 16
    lengths: tuple[int, ...] = (256,)
    questions: int | None = None
    protocol: Literal["query_aware", "query_agnostic"] = "query_agnostic"
    text: str | None = None
    files: tuple[str, ...] = ()
    answer_tokens: int | None = None
    file_tokens: int | None = None
    prompts: str | None = None
    budgets: tuple[float, ...] | None = None
    measures: tuple[Literal["attention", "recall"], ...] = ("attention", "recall")
    top_keys: int = 16
    free_running: bool = False

    def __post_init__(self) -> None:
        for task in self.tasks or ():
            if task not in QUALITY_TASKS:
                known = f"known: {', '.join(QUALITY_TASKS)}{suggest(task, QUALITY_TASKS)}"
                raise ValueError(f"tasks has {task!r}, which is unknown; {known}")
        if self.tasks is not None and not (self.tasks or self.files):
            raise ValueError("tasks is [] and files is []: there is nothing to ask")
        if self.episodes > 10**6:
            raise ValueError(f"episodes is {self.episodes}, expected at most {10**6}")
        for name in ("episodes", "questions", "answer_tokens", "file_tokens", "top_keys"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if not self.lengths or min(self.lengths) < SHORTEST:
            raise ValueError(f"lengths is {list(self.lengths)}, expected numbers of tokens, each at least {SHORTEST}")
        if self.budgets is not None and not (self.budgets and all(0 < ratio <= 1 for ratio in self.budgets)):
            raise ValueError(f"budgets is {list(self.budgets)}, expected shares of the context, above 0 to 1")
        for name in ("tasks", "lengths", "budgets", "measures", "files"):
            if len(set(given := getattr(self, name) or ())) < len(given):
                raise ValueError(f"{name} is {list(given)}, expected each of them once")


def _require_seconds(seconds: float) -> None:
    if not 0 < seconds < float("inf"):
        raise ValueError(f"seconds is {seconds}, expected more than 0")


TaskKnobs = ServeTask | ReplayTask | CalibrateTask | FidelityTask | QualityTask
TASK_KNOBS: Mapping[str, type[TaskKnobs]] = {
    "serve": ServeTask,
    "replay": ReplayTask,
    "calibrate": CalibrateTask,
    "fidelity": FidelityTask,
    "quality": QualityTask,
}
