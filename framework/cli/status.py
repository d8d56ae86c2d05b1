"""Exit statuses, and the line that goes with them."""

from __future__ import annotations

import sys

BAD_CONFIG, RUN_FAILED, INTERRUPTED = 2, 1, 130


def say(line: str, status: int = BAD_CONFIG) -> int:
    """Print one line to standard error and return ``status``."""
    print(f"kvarena: {line}", file=sys.stderr)
    return status


def was_interrupted(error: BaseException | None) -> bool:
    """Ctrl-C is behind ``error``: Hydra may replace it by an error of its own while it unwinds."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
