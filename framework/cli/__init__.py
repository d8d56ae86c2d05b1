"""The command line: ``kvarena [overrides]``, a Hydra application on ``conf/config.yaml``.

Nothing is computed before everything was checked; what is wrong is said in one line. Exit status: 0; 1 if a run failed;
2 for a bad configuration; 130 if it was interrupted. In a sweep no job raises: its folder says what happened.
"""

from .application import main
from .hooks import Doors
from .jobs import job
from .sweeper import Variants, sweep_jobs

__all__ = ["Doors", "Variants", "job", "main", "sweep_jobs"]
