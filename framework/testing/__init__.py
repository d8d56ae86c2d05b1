"""What a policy's own tests use: decisions step by step, and small runs of the real engine."""

from .differing import first_difference
from .runs import SmallRun, small_config, small_run
from .stepping import Step, chat_trace, steps_of, workload_trace

__all__ = [
    "SmallRun",
    "Step",
    "chat_trace",
    "first_difference",
    "small_config",
    "small_run",
    "steps_of",
    "workload_trace",
]
