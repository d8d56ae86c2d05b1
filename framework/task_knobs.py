"""The knobs of each task: the schemas of ``conf/task/*.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .metrics import Slo


@dataclass(frozen=True, slots=True)
class ServeTask:
    """``task=serve``: run the workload and measure."""

    slo: Slo = field(default_factory=Slo)


TaskKnobs = ServeTask
TASK_KNOBS: Mapping[str, type[TaskKnobs]] = {"serve": ServeTask}
