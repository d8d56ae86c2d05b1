"""How the threads of a CPU run wait for each other. Imports no torch: it must come first."""

from __future__ import annotations

import os


def spin_briefly() -> None:
    """Let OpenMP's threads spin a short while at barriers, then sleep; no effect once torch is loaded.

    A decode step has hundreds of short parallel regions. libgomp's default spins for milliseconds: a few percent faster
    on a quiet machine, but where another process wants the cores each wait lasts a scheduler's quantum and a step takes
    several times as long (``runs/LOG.md``).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
