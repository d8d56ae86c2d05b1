"""Sweeps: which jobs there are, where they run, how far they have come. Knows nothing of Hydra."""

from .folder import SweepFolder, open_sweep
from .jobs import JobState, clear, job_lock, job_state, mark
from .key import Words, code_version, identity, sweep_key
from .ladder import Ladder, RateLadder, contestants
from .locks import Lock
from .plans import Grid, Plan, Summaries
from .progress import SweepProgress, seconds_in_jobs

__all__ = [
    "Grid",
    "JobState",
    "Ladder",
    "Lock",
    "Plan",
    "RateLadder",
    "Summaries",
    "SweepFolder",
    "SweepProgress",
    "Words",
    "clear",
    "code_version",
    "contestants",
    "identity",
    "job_lock",
    "job_state",
    "mark",
    "open_sweep",
    "seconds_in_jobs",
    "sweep_key",
]
