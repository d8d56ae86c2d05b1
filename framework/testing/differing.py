"""Where two sequences part."""

from __future__ import annotations

from collections.abc import Sequence


def first_difference(found: Sequence[object], expected: Sequence[object]) -> str:
    """The first place where ``found`` is not ``expected``, in words; empty if they are equal.

    Meant for ``assert not first_difference(mine, builtin)``: pytest then shows the step at which two policies part.
    """
    for index in range(max(len(found), len(expected))):
        one, other = (str(row[index]) if index < len(row) else "nothing more" for row in (found, expected))
        if index >= min(len(found), len(expected)) or found[index] != expected[index]:
            return f"step {index}: {one}, expected {other}"
    return ""
