"""How the threads of a CPU run wait for each other. Imports no torch: it must come first."""

from __future__ import annotations

import os


def sleep_when_idle() -> None:
    """Let OpenMP's threads sleep at barriers instead of spinning; no effect once torch is loaded.

    A decode step has hundreds of short parallel regions: where other processes want the cores too, each spin lasts a
    scheduler's quantum, and the step takes ten times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
